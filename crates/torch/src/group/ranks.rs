//! Who this process is among those that were started together.

use crate::bail;
use crate::error::{Error, Result};
use std::time::Duration;

/// The variable with the seconds that ranks wait for each other.
pub(super) const TIMEOUT: &str = "LCSC_RANK_TIMEOUT";
const SECONDS: u64 = 1800;

/// One of several processes that were started together, as torchrun, `lcsc launch` and Kubernetes' PyTorchJob describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// The number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// The number of this process among those of its machine.
    pub local_rank: usize,
    /// Whether all are on one machine.
    pub one_machine: bool,
    /// Where the store is through which they find each other.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The launcher keeps the store; else rank 0 does.
    pub launcher_serves: bool,
    /// How often the launcher has started them again.
    pub restart: u64,
    /// How long a rank waits for another.
    pub timeout: Duration,
}

impl Ranks {
    /// What the environment says: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, and where they are set `LOCAL_RANK` (else 0)
    /// and `LOCAL_WORLD_SIZE`.
    /// None where `WORLD_SIZE` is not set or 1: the process is alone.
    ///
    /// # Errors
    /// A variable is missing or no number.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str, default: Option<u64>| match (get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::Message(format!(
                "WORLD_SIZE says that several processes belong together, but {name} is not set: torchrun and `lcsc launch` \
                 set it; unset WORLD_SIZE to run alone"
            ))),
            (Some(text), _) => {
                text.parse::<u64>().map_err(|_| Error::Message(format!("{name} is `{text}`, expected a number")))
            }
        };
        let size = number("WORLD_SIZE", Some(1))?;
        if size <= 1 {
            return Ok(None);
        }
        let (rank, port) = (number("RANK", None)?, number("MASTER_PORT", None)?);
        if rank >= size {
            bail!("RANK is {rank}, expected less than WORLD_SIZE, which is {size}");
        }
        let port =
            u16::try_from(port).map_err(|_| Error::Message(format!("MASTER_PORT is {port}, expected a port")))?;
        let Some(host) = get("MASTER_ADDR") else { bail!("WORLD_SIZE is {size}, but MASTER_ADDR is not set") };
        let timeout = number(TIMEOUT, Some(SECONDS))?;
        if timeout == 0 {
            bail!("{TIMEOUT} is 0, expected seconds");
        }
        Ok(Some(Self {
            rank: rank as usize,
            size: size as usize,
            local_rank: number("LOCAL_RANK", Some(0))? as usize,
            one_machine: number("LOCAL_WORLD_SIZE", Some(0))? == size,
            host,
            port,
            launcher_serves: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true")),
            restart: number("TORCHELASTIC_RESTART_COUNT", Some(0))?,
            timeout: Duration::from_secs(timeout),
        }))
    }

    /// One of `size` processes on this machine, for which the one that starts them [keeps the store](super::Store::serve) at `port`.
    pub fn of_this_machine(rank: usize, size: usize, port: u16) -> Self {
        Self {
            rank,
            size,
            local_rank: rank,
            one_machine: true,
            host: "127.0.0.1".into(),
            port,
            launcher_serves: true,
            restart: 0,
            timeout: Duration::from_secs(SECONDS),
        }
    }

    /// The variables that tell a process of this machine who it is, as [`Self::from_env`] reads them; how long to wait is left to the
    /// user.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.size.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", self.size.to_string()),
            ("MASTER_ADDR", self.host.clone()),
            ("MASTER_PORT", self.port.to_string()),
            ("TORCHELASTIC_USE_AGENT_STORE", "True".into()),
            ("TORCHELASTIC_RESTART_COUNT", self.restart.to_string()),
        ]
    }

    /// Whether this process keeps the store.
    pub(super) fn serves(&self) -> bool {
        self.rank == 0 && !self.launcher_serves
    }

    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];

    /// What is read of [`STARTED`] after a change.
    fn read(name: &str, value: Option<&str>) -> std::result::Result<Option<Ranks>, String> {
        let get = |asked: &str| match asked == name {
            true => value.map(str::to_string),
            false => STARTED.iter().find(|(n, _)| *n == asked).map(|(_, v)| v.to_string()),
        };
        Ranks::from(get).map_err(|e| e.to_string())
    }

    #[test]
    fn the_environment_of_pytorch_is_read() {
        let ranks = read("", None).unwrap().unwrap();
        let expected = Ranks {
            rank: 3,
            size: 4,
            local_rank: 1,
            one_machine: false,
            host: "node0".into(),
            port: 29500,
            launcher_serves: false,
            restart: 0,
            timeout: Duration::from_secs(1800),
        };
        assert_eq!(ranks, expected);
        assert!(read("TORCHELASTIC_USE_AGENT_STORE", Some("True")).unwrap().unwrap().launcher_serves);
        assert!(read("LOCAL_WORLD_SIZE", Some("4")).unwrap().unwrap().one_machine);
        assert!(!read("LOCAL_WORLD_SIZE", Some("2")).unwrap().unwrap().one_machine);
        assert_eq!(read("LOCAL_RANK", None).unwrap().unwrap().local_rank, 0);
        assert_eq!(read("WORLD_SIZE", None), Ok(None));
        assert_eq!(read("WORLD_SIZE", Some("1")), Ok(None));
    }

    #[test]
    fn what_a_launcher_sets_is_read() {
        let ranks = Ranks::of_this_machine(1, 2, 4711);
        let env = ranks.to_env();
        let get = |asked: &str| env.iter().find(|(name, _)| *name == asked).map(|(_, value)| value.clone());
        assert_eq!(Ranks::from(get).unwrap(), Some(ranks));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let refused = |name, value| read(name, value).unwrap_err();
        assert!(refused("RANK", None).contains("RANK is not set"));
        assert!(refused("MASTER_ADDR", None).contains("MASTER_ADDR is not set"));
        assert!(refused("RANK", Some("4")).contains("expected less than WORLD_SIZE, which is 4"));
        assert!(refused("MASTER_PORT", Some("x")).contains("MASTER_PORT is `x`, expected a number"));
        assert!(refused("MASTER_PORT", Some("70000")).contains("expected a port"));
        assert!(refused(TIMEOUT, Some("0")).contains("expected seconds"));
    }
}
