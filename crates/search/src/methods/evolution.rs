//! Evolutionary search (arXiv 2404.02241, algorithm 1; constants of arXiv 2407.00945).

use super::{Member, Objective, check_positive, check_probability};
use crate::candidate::Origin;
use crate::coefficients::Coefficients;
use crate::log::Evaluation;
use lcsc_torch::{Error, Invalid, Result, Stream, bail, rng, standard_normal, unit_f64};
use rand_core::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The constants of the evolutionary search (arXiv 2404.02241, algorithm 1; values of arXiv 2407.00945).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvolutionConfig {
    /// Best baselines that start the population, at most.
    pub initial: usize,
    /// Probability that a candidate has two parents; otherwise one is mutated.
    pub crossover: f64,
    /// Candidates that can be parents, at least.
    pub parents: usize,
    /// All candidates whose score is within this fraction of the best can be parents too.
    pub threshold: f64,
    /// Probability, a coefficient, that crossover takes it from the better parent.
    pub inherit: f64,
    /// Probability, a coefficient, that mutation moves it.
    pub mutation: f64,
    /// Standard deviation of a mutation.
    pub sigma: f64,
    /// Probability that all coefficients are rescaled to sum to one, instead of the last one giving way.
    pub renormalise: f64,
    /// Candidates proposed from one state of the population, so that they can be merged in one pass over the checkpoints, and
    /// spread over ranks.
    pub batch: u64,
}

impl Default for EvolutionConfig {
    fn default() -> Self {
        Self {
            initial: 30,
            crossover: 0.3,
            parents: 6,
            threshold: 0.01,
            inherit: 0.6,
            mutation: 0.25,
            sigma: 0.065,
            renormalise: 0.1,
            batch: 1,
        }
    }
}

impl EvolutionConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        let at_least_one = |key: &str, n: u64| (n == 0).then(|| Invalid::new(key, "is 0, expected at least 1"));
        let threshold = (self.threshold.is_nan() || self.threshold < 0.0)
            .then(|| Invalid::new("threshold", format!("is {}, expected zero or more", self.threshold)));
        [
            at_least_one("initial", self.initial as u64),
            at_least_one("parents", self.parents as u64),
            at_least_one("batch", self.batch),
            threshold,
            check_positive("sigma", self.sigma),
            check_probability("crossover", self.crossover),
            check_probability("inherit", self.inherit),
            check_probability("mutation", self.mutation),
            check_probability("renormalise", self.renormalise),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The state of the search. There are no generations: every candidate told so far can be a parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evolution {
    config: EvolutionConfig,
    objective: Objective,
    seed: u64,
    first_id: u64,
    /// Best first; equal scores by id.
    population: Vec<Member>,
}

impl Evolution {
    /// A population of the best of `initial`; asked candidates are numbered from `first_id`.
    pub(super) fn new(
        config: EvolutionConfig,
        objective: Objective,
        seed: u64,
        first_id: u64,
        initial: Vec<Member>,
    ) -> Self {
        let mut evolution = Self { config, objective, seed, first_id, population: Vec::new() };
        initial.into_iter().for_each(|member| evolution.insert(member));
        evolution.population.truncate(evolution.config.initial);
        evolution
    }

    /// A candidate: a function of (seed, id) and of the population before its batch.
    pub(super) fn ask(&self, id: u64) -> Result<(Origin, Coefficients)> {
        let rng = &mut rng(self.seed, Stream::Search, id);
        let batch = self.first_id + (id - self.first_id) / self.config.batch * self.config.batch;
        let (origin, rows) = match self.parents(batch)[..] {
            [] => bail!("the evolutionary search has no initial candidate"),
            ref parents @ [_, _, ..] if unit_f64(rng) < self.config.crossover => self.cross(parents, rng),
            ref parents => self.mutate(parents[below(parents.len(), rng)], rng),
        };
        let rescaled = unit_f64(rng) < self.config.renormalise;
        let alpha = match rescaled {
            true => Coefficients::renormalised(&rows).or_else(|_| Coefficients::new(&rows)), // a sum may be zero
            false => Coefficients::new(&rows),
        }?;
        Ok((origin, alpha))
    }

    /// How many candidates from `id` on are of one batch.
    pub(super) fn most(&self, id: u64) -> u64 {
        self.config.batch - (id - self.first_id) % self.config.batch
    }

    /// Adds a scored candidate to the population. A score that is not finite is the worst.
    pub(super) fn tell(&mut self, evaluation: &Evaluation) -> Result<()> {
        let member = self.objective.member(evaluation)?;
        self.insert(member.ok_or_else(|| Error::msg("a candidate without coefficients"))?);
        Ok(())
    }

    fn insert(&mut self, member: Member) {
        let place =
            self.population.partition_point(|m| m.score.total_cmp(&member.score).then(m.id.cmp(&member.id)).is_lt());
        self.population.insert(place, member);
    }

    /// Of those before `batch` the ones within a fraction of the best score, and at least the best few; best first.
    fn parents(&self, batch: u64) -> Vec<&Member> {
        let known = || self.population.iter().filter(|m| m.id < batch);
        let bar = known().next().map_or(0.0, |best| best.score + self.config.threshold * best.score.abs());
        let within = known().take_while(|m| m.score <= bar).count();
        known().take(within.max(self.config.parents)).collect()
    }

    /// Each coefficient from the better of two different parents with probability `inherit`, else from the other.
    fn cross(&self, parents: &[&Member], rng: &mut impl Rng) -> (Origin, Vec<Vec<f64>>) {
        let i = below(parents.len(), rng);
        let j = (i + 1 + below(parents.len() - 1, rng)) % parents.len();
        let (better, other) = (parents[i.min(j)], parents[i.max(j)]);
        let mut pick = |a: f64, b: f64| if unit_f64(rng) < self.config.inherit { a } else { b };
        let rows = better.coefficients.rows().iter().zip(other.coefficients.rows());
        let rows = rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| pick(*a, *b)).collect()).collect();
        (Origin::Crossover { parents: [better.id, other.id] }, rows)
    }

    /// Each coefficient gains `sigma`·N(0, 1) with probability `mutation`.
    fn mutate(&self, parent: &Member, rng: &mut impl Rng) -> (Origin, Vec<Vec<f64>>) {
        let mut moved = |a: &f64| {
            if unit_f64(rng) < self.config.mutation { a + self.config.sigma * standard_normal(rng) } else { *a }
        };
        let rows = parent.coefficients.rows().iter().map(|row| row.iter().map(&mut moved).collect()).collect();
        (Origin::Mutation { parent: parent.id }, rows)
    }
}

/// Uniform in 0..n.
fn below(n: usize, rng: &mut impl Rng) -> usize {
    (unit_f64(rng) * n as f64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Penalty;

    fn member(id: u64, values: &[f64], score: f64) -> Member {
        Member { id, score, coefficients: Coefficients::one(values.to_vec()).unwrap() }
    }

    fn evolution(config: EvolutionConfig, initial: Vec<Member>) -> Evolution {
        let start = Coefficients::one(vec![0.5, 0.5]).unwrap();
        Evolution::new(config, Objective::new(Penalty::default(), start), 0, 9, initial)
    }

    #[test]
    fn parents_are_the_best_few_and_all_within_the_threshold() {
        let config = EvolutionConfig { parents: 2, threshold: 0.1, ..EvolutionConfig::default() };
        let ids = |scores: &[f64]| {
            let members = scores.iter().enumerate().map(|(i, s)| member(i as u64, &[0.5, 0.5], *s)).collect();
            evolution(config.clone(), members).parents(9).iter().map(|m| m.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&[1.2, 1.05, 1.0, 1.09, 1.3]), [2, 1, 3]);
        assert_eq!(ids(&[1.2, 1.05, 0.5]), [2, 1]);
        assert_eq!(ids(&[3.0]), [0]);
        assert!(evolution(config.clone(), vec![]).ask(9).is_err());
    }

    #[test]
    fn the_population_starts_from_the_best_few() {
        let config = EvolutionConfig { initial: 3, ..EvolutionConfig::default() };
        let scores = [0.5, 0.0, 1.0, 0.1, 0.2, 2.0, 0.3];
        let members = scores.iter().enumerate().map(|(i, s)| member(i as u64, &[0.5, 0.5], *s)).collect();
        let ids: Vec<u64> = evolution(config, members).population.iter().map(|m| m.id).collect();
        assert_eq!(ids, [1, 3, 4]);
    }

    #[test]
    fn crossover_takes_each_coefficient_from_a_parent() {
        let config = EvolutionConfig { crossover: 1.0, renormalise: 0.0, ..EvolutionConfig::default() };
        let values = |i: u64| (0..8).map(|k| (10 * i + k) as f64).collect::<Vec<_>>();
        let evolution = evolution(config, (0..8).map(|i| member(i, &values(i), i as f64)).collect());
        for id in 9..29 {
            let (origin, child) = evolution.ask(id).unwrap();
            let Origin::Crossover { parents: [a, b] } = origin else { panic!("{origin:?}") };
            assert!(a < b && b < 6);
            for (k, value) in child.rows()[0][..7].iter().enumerate() {
                assert!(*value == values(a)[k] || *value == values(b)[k]);
            }
        }
    }

    #[test]
    fn mutation_moves_a_share_of_the_coefficients() {
        let config = EvolutionConfig { crossover: 0.0, renormalise: 0.0, ..EvolutionConfig::default() };
        let evolution = evolution(config, vec![member(0, &[0.01; 100], 1.0)]);
        let moved: Vec<f64> = (9..29)
            .flat_map(|id| evolution.ask(id).unwrap().1.rows()[0][..99].to_vec())
            .filter(|a| *a != 0.01)
            .map(|a| a - 0.01)
            .collect();
        let share = moved.len() as f64 / (20.0 * 99.0);
        let std = (moved.iter().map(|d| d * d).sum::<f64>() / moved.len() as f64).sqrt();
        assert!((share - 0.25).abs() < 0.03 && (std - 0.065).abs() < 0.006, "{share} {std}");
    }
}
