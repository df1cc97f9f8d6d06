//! How the ranks of a group end when one of them fails.

use super::{Joined, POLL};
use crate::error::Result;
use std::time::{Duration, Instant};

/// How long a rank that failed waits for the others to learn why, and they for it to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a rank ends with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// By its own error.
    Own,
    /// Since another rank ended, or by an error that rank 0 tells: what is known of that.
    OfAnother(String),
}

/// What a rank that ends leaves in the store.
#[derive(Clone, Copy)]
enum Note {
    /// It failed, with this message.
    Failed,
    /// It found another one gone.
    Lost,
    /// It needs the store no more.
    Done,
}

impl Joined {
    fn key(note: Note, rank: usize) -> String {
        match note {
            Note::Failed => format!("failed/{rank}"),
            Note::Lost => format!("lost/{rank}"),
            Note::Done => format!("done/{rank}"),
        }
    }

    fn note(&self, note: Note, text: &str) {
        // Where the store is gone, so is rank 0, which the others find out by themselves.
        let _ = self.store.set(&Self::key(note, self.ranks.rank), text);
    }

    fn failed(&self, rank: usize) -> Option<String> {
        self.store.get(&Self::key(Note::Failed, rank)).ok().flatten()
    }

    fn has(&self, note: Note, rank: usize) -> Result<bool> {
        self.store.has(&Self::key(note, rank))
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.ranks.rank;
        (0..self.ranks.size).filter(move |rank| *rank != own)
    }

    /// Tells the others why this rank fails. What all ranks find, rank 0 alone has to say.
    pub(super) fn tell_why(mut self, message: &str) -> Failure {
        self.note(Note::Failed, message);
        // From here on collectives of the others fail.
        drop((self.host.take(), self.gpu.take()));
        if self.ranks.rank == 0 {
            self.leave_store();
            return Failure::Own;
        }
        let mut of_0 = None;
        wait_until(LAST_WORDS, || {
            of_0 = self.failed(0);
            of_0.is_some() || self.has(Note::Lost, 0).unwrap_or(true)
        });
        self.leave_store();
        match of_0 {
            Some(text) if text.ends_with(message) => Failure::OfAnother("rank 0 tells why".into()),
            Some(_) | None => Failure::Own,
        }
    }

    /// Learns why a collective failed with this message.
    pub(super) fn learn_why(self, message: &str) -> Failure {
        self.note(Note::Lost, "");
        if let Some(gpu) = self.gpu.get() {
            gpu.abort();
        }
        let mut reason = None;
        wait_until(LAST_WORDS, || {
            reason = self.others().find_map(|rank| Some((rank, self.failed(rank)?)));
            reason.is_some()
        });
        let known = reason.map_or_else(
            || {
                let silent = self.others().filter(|rank| !self.has(Note::Lost, *rank).unwrap_or(*rank != 0));
                let silent: Vec<String> = silent.map(|rank| rank.to_string()).collect();
                let silent = if silent.is_empty() { "another".into() } else { silent.join(", ") };
                format!(
                    "rank {silent} is gone or does not answer (killed, out of memory, or its machine or network is down): \
                     {message}"
                )
            },
            |(rank, reason)| format!("rank {rank} ended: {reason}"),
        );
        self.leave_store();
        Failure::OfAnother(known)
    }

    /// The rank that keeps the store waits until the others need it no more.
    fn leave_store(&self) {
        self.note(Note::Done, "");
        if self.ranks.serves() {
            wait_until(LAST_WORDS, || self.others().all(|rank| self.has(Note::Done, rank).unwrap_or(true)));
        }
    }
}

fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() && began.elapsed() < patience {
        std::thread::sleep(POLL);
    }
}
