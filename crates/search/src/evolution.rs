//! Evolutionary search (arXiv 2404.02241, algorithm 1; constants of arXiv 2407.00945) as ask and tell.

use crate::candidate::{Candidate, Model, Origin};
use crate::coefficients::Coefficients;
use crate::config::EvolutionConfig;
use crate::score::{infinite_as_null, worst_if_not_finite};
use lcsc_torch::{Result, Stream, bail, rng, standard_normal, unit_f64};
use rand_core::Rng;
use serde::{Deserialize, Serialize};

/// A scored candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Candidate id.
    pub id: u64,
    /// α, K values.
    pub coefficients: Coefficients,
    /// Smaller is better; +∞ ranks last.
    #[serde(with = "infinite_as_null")]
    pub score: f64,
}

/// The state of the search. There are no generations: every candidate told so far can be a parent.
///
/// The candidate of an id depends on (seed, id) and on the population alone, so that telling the logged scores again
/// restores the search exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evolution {
    config: EvolutionConfig,
    seed: u64,
    next_id: u64,
    /// Best first; equal scores by id.
    population: Vec<Member>,
}

impl Evolution {
    /// A population of the best of `initial`; asked candidates are numbered from `first_id`.
    pub fn new(config: EvolutionConfig, seed: u64, first_id: u64, initial: Vec<Member>) -> Self {
        let mut evolution = Self { config, seed, next_id: first_id, population: Vec::new() };
        initial.into_iter().for_each(|member| evolution.insert(member));
        evolution.population.truncate(evolution.config.initial);
        evolution
    }

    /// The next candidate to score.
    ///
    /// # Errors
    /// The population is empty, or a coefficient has grown beyond all numbers.
    pub fn ask(&mut self) -> Result<Candidate> {
        let id = self.next_id;
        let rng = &mut rng(self.seed, Stream::Search, id);
        let (origin, values) = match self.parents() {
            [] => bail!("the evolutionary search has no initial candidate"),
            parents @ [_, _, ..] if unit_f64(rng) < self.config.crossover => self.cross(parents, rng),
            parents => self.mutate(&parents[below(parents.len(), rng)], rng),
        };
        let rescaled = unit_f64(rng) < self.config.renormalise;
        let coefficients = match rescaled {
            true => Coefficients::renormalised(&values).or_else(|_| Coefficients::new(&values)), // the sum may be zero
            false => Coefficients::new(&values),
        }?;
        self.next_id += 1;
        Ok(Candidate { id, origin, model: Model::Coefficients(coefficients) })
    }

    /// Adds a scored candidate to the population. A score that is not finite is the worst.
    pub fn tell(&mut self, member: Member) {
        self.next_id = self.next_id.max(member.id + 1);
        self.insert(member);
    }

    /// The population, best first.
    pub fn population(&self) -> &[Member] {
        &self.population
    }

    fn insert(&mut self, member: Member) {
        let member = Member { score: worst_if_not_finite(member.score), ..member };
        let place =
            self.population.partition_point(|m| m.score.total_cmp(&member.score).then(m.id.cmp(&member.id)).is_lt());
        self.population.insert(place, member);
    }

    /// Those within a fraction of the best score, and at least the best few.
    fn parents(&self) -> &[Member] {
        let bar = self.population.first().map_or(0.0, |best| best.score + self.config.threshold * best.score.abs());
        let within = self.population.partition_point(|m| m.score <= bar);
        &self.population[..within.max(self.config.parents).min(self.population.len())]
    }

    /// Each coefficient from the better of two different parents with probability `inherit`, else from the other.
    fn cross(&self, parents: &[Member], rng: &mut impl Rng) -> (Origin, Vec<f64>) {
        let i = below(parents.len(), rng);
        let j = (i + 1 + below(parents.len() - 1, rng)) % parents.len();
        let (better, other) = (&parents[i.min(j)], &parents[i.max(j)]);
        let pairs = better.coefficients.as_slice().iter().zip(other.coefficients.as_slice());
        let values = pairs.map(|(a, b)| if unit_f64(rng) < self.config.inherit { *a } else { *b }).collect();
        (Origin::Crossover { parents: [better.id, other.id] }, values)
    }

    /// Each coefficient gains `sigma`·N(0, 1) with probability `mutation`.
    fn mutate(&self, parent: &Member, rng: &mut impl Rng) -> (Origin, Vec<f64>) {
        let mut moved = |a: &f64| {
            if unit_f64(rng) < self.config.mutation { a + self.config.sigma * standard_normal(rng) } else { *a }
        };
        let values = parent.coefficients.as_slice().iter().map(&mut moved).collect();
        (Origin::Mutation { parent: parent.id }, values)
    }
}

/// Uniform in 0..n.
fn below(n: usize, rng: &mut impl Rng) -> usize {
    (unit_f64(rng) * n as f64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ill-conditioned bowl on the plane Σα = 1 with its minimum of 1 at `optimum`.
    fn bowl(optimum: &[f64], alpha: &[f64]) -> f64 {
        let terms = alpha.iter().zip(optimum).enumerate();
        1.0 + terms.map(|(i, (a, o))| (1.0 + i as f64) * (a - o).powi(2)).sum::<f64>()
    }

    const OPTIMUM: [f64; 8] = [-0.4, 0.3, -0.2, 0.5, 0.1, -0.6, 0.2, 1.1];

    fn member(id: u64, values: &[f64], score: impl Fn(&[f64]) -> f64) -> Member {
        let coefficients = Coefficients::new(values).unwrap();
        Member { id, score: score(coefficients.as_slice()), coefficients }
    }

    fn one_hots(score: impl Fn(&[f64]) -> f64) -> Vec<Member> {
        (0..8).map(|i| member(i as u64, &lcsc_trajectory::one_hot(8, i), &score)).collect()
    }

    fn asked(evolution: &mut Evolution) -> (Candidate, Coefficients) {
        let candidate = evolution.ask().unwrap();
        match candidate.model.clone() {
            Model::Coefficients(c) => (candidate, c),
            Model::Track(name) => panic!("{name}"),
        }
    }

    fn evolve(evolution: &mut Evolution, n: usize, score: impl Fn(&[f64]) -> f64) {
        for _ in 0..n {
            let (candidate, coefficients) = asked(evolution);
            let score = score(coefficients.as_slice());
            evolution.tell(Member { id: candidate.id, coefficients, score });
        }
    }

    #[test]
    fn a_known_optimum_is_found() {
        let score = |alpha: &[f64]| bowl(&OPTIMUM, alpha);
        for seed in 0..3 {
            let mut evolution = Evolution::new(EvolutionConfig::default(), seed, 8, one_hots(score));
            let start = evolution.population()[0].score - 1.0;
            assert!(start > 4.0);
            evolve(&mut evolution, 400, score);
            let after_400 = evolution.population()[0].score - 1.0;
            assert!(after_400 < start / 15.0, "seed {seed}: {start} to {after_400} after 400");
            evolve(&mut evolution, 1600, score);
            let best = &evolution.population()[0];
            assert!(best.score - 1.0 < 0.02, "seed {seed}: {} after 2000", best.score - 1.0);
            for (a, o) in best.coefficients.as_slice().iter().zip(OPTIMUM) {
                assert!((a - o).abs() < 0.1, "seed {seed}: {a} for {o}");
            }
        }
    }

    #[test]
    fn every_candidate_stays_on_the_plane() {
        let score = |alpha: &[f64]| bowl(&OPTIMUM, alpha);
        let config = EvolutionConfig { renormalise: 0.5, ..EvolutionConfig::default() };
        let mut evolution = Evolution::new(config, 0, 8, one_hots(score));
        evolve(&mut evolution, 300, score);
        assert_eq!(evolution.population().len(), 308);
        for m in evolution.population() {
            assert!((m.coefficients.as_slice().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn what_is_not_finite_ranks_last_and_ends_nothing() {
        let score = |alpha: &[f64]| if alpha[0] > 0.05 { f64::NAN } else { bowl(&OPTIMUM, alpha) };
        let mut evolution = Evolution::new(EvolutionConfig::default(), 1, 8, one_hots(score));
        evolve(&mut evolution, 300, score);
        let population = evolution.population();
        assert_eq!(population.last().unwrap().score, f64::INFINITY);
        assert!(population.is_sorted_by(|a, b| a.score <= b.score));
        assert!(population[0].score < 1.5, "{}", population[0].score);

        let mut lost = Evolution::new(EvolutionConfig::default(), 1, 8, one_hots(|_| f64::NEG_INFINITY));
        evolve(&mut lost, 20, |_| f64::NAN);
        assert!(lost.population().iter().all(|m| m.score == f64::INFINITY));
    }

    #[test]
    fn state_survives_json_and_telling_restores_it() {
        let score = |alpha: &[f64]| if alpha[3] > 0.9 { f64::INFINITY } else { bowl(&OPTIMUM, alpha) };
        let mut evolution = Evolution::new(EvolutionConfig::default(), 5, 8, one_hots(score));
        evolve(&mut evolution, 50, score);
        let json = serde_json::to_string(&evolution).unwrap();
        assert_eq!(serde_json::from_str::<Evolution>(&json).unwrap(), evolution);

        let mut told = Evolution::new(EvolutionConfig::default(), 5, 8, one_hots(score));
        let mut members: Vec<Member> = evolution.population().iter().filter(|m| m.id >= 8).cloned().collect();
        members.reverse();
        members.into_iter().for_each(|m| told.tell(m));
        assert_eq!(told, evolution);
        assert_eq!(told.ask().unwrap(), evolution.ask().unwrap());
    }

    #[test]
    fn parents_are_the_best_few_and_all_within_the_threshold() {
        let config = EvolutionConfig { parents: 2, threshold: 0.1, ..EvolutionConfig::default() };
        let population = |scores: &[f64]| {
            let one = |(i, s): (usize, &f64)| member(i as u64, &[0.5, 0.5], |_| *s);
            Evolution::new(config.clone(), 0, 9, scores.iter().enumerate().map(one).collect())
        };
        let ids = |e: Evolution| e.parents().iter().map(|m| m.id).collect::<Vec<_>>();
        assert_eq!(ids(population(&[1.2, 1.05, 1.0, 1.09, 1.3])), [2, 1, 3]);
        assert_eq!(ids(population(&[1.2, 1.05, 0.5])), [2, 1]);
        assert_eq!(ids(population(&[3.0])), [0]);
        assert!(population(&[]).ask().is_err());
    }

    #[test]
    fn the_population_starts_from_the_best_few() {
        let config = EvolutionConfig { initial: 3, ..EvolutionConfig::default() };
        let evolution = Evolution::new(config, 0, 8, one_hots(|alpha| alpha[2] + 2.0 * alpha[5] + 0.5 * alpha[0]));
        let ids: Vec<u64> = evolution.population().iter().map(|m| m.id).collect();
        assert_eq!(ids, [1, 3, 4]);
    }

    #[test]
    fn crossover_takes_each_coefficient_from_a_parent() {
        let config = EvolutionConfig { crossover: 1.0, renormalise: 0.0, ..EvolutionConfig::default() };
        let score = |alpha: &[f64]| bowl(&OPTIMUM, alpha);
        let mut evolution = Evolution::new(config, 0, 8, one_hots(score));
        for _ in 0..20 {
            let (candidate, child) = asked(&mut evolution);
            let Origin::Crossover { parents: [a, b] } = candidate.origin else { panic!("{:?}", candidate.origin) };
            let rank = |id| evolution.population().iter().position(|m| m.id == id).unwrap();
            assert!(rank(a) < rank(b) && rank(b) < 6);
            for (i, value) in child.free().iter().enumerate() {
                let of = |id: u64| evolution.population()[rank(id)].coefficients.as_slice()[i];
                assert!(*value == of(a) || *value == of(b));
            }
        }
    }
}
