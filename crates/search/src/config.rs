//! What a search is told.

use lcsc_torch::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A search of coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// How candidates are proposed.
    pub method: MethodConfig,
    /// When to stop.
    pub budget: Budget,
    /// Images sampled to score a candidate, N.
    pub images: u64,
    /// Images sampled to score a finalist, from latents of their own.
    pub selection_images: u64,
    /// Images sampled for each row of the final table and each report seed, from latents used nowhere else.
    pub report_images: u64,
    /// Sets of report latents: the final table shows mean and spread over them.
    pub report_seeds: u64,
    /// The best few of each family that are scored again on the selection latents.
    pub finalists: usize,
    /// The stage whose checkpoints are combined; the last one unless named.
    pub stage: Option<String>,
    /// Only checkpoints of the last so many images; all unless given.
    pub window: Option<u64>,
    /// The matrix of checkpoints stays on the device up to this many GiB, else on disk.
    pub memory_gib: f64,
    /// Images sampled at once.
    pub chunk: u64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            method: MethodConfig::default(),
            budget: Budget { evaluations: Some(400), seconds: None },
            images: 1000,
            selection_images: 2000,
            report_images: 5000,
            report_seeds: 3,
            finalists: 5,
            stage: None,
            window: None,
            memory_gib: 4.0,
            chunk: 250,
        }
    }
}

impl SearchConfig {
    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Invalid::new(key, format!("expected {expected}")));
            }
        };
        let positive = |v: f64| v.is_finite() && v > 0.0;
        check(self.budget != Budget::default(), "budget", "`evaluations`, `seconds` or both");
        check(self.budget.seconds.is_none_or(positive), "budget.seconds", "a positive number");
        check(self.images >= 2, "images", "at least 2: a covariance is estimated from them");
        check(self.selection_images >= 2, "selection_images", "at least 2: a covariance is estimated from them");
        check(self.report_images >= 2, "report_images", "at least 2: a covariance is estimated from them");
        check(self.report_seeds >= 1, "report_seeds", "at least 1");
        check(self.finalists >= 1, "finalists", "at least 1");
        check(self.window.is_none_or(|w| w > 0), "window", "at least 1 image");
        check(self.memory_gib.is_finite() && self.memory_gib >= 0.0, "memory_gib", "zero or a positive number");
        check(self.chunk >= 1, "chunk", "at least 1");
        let MethodConfig::Evolution(evolution) = &self.method;
        let EvolutionConfig { initial, crossover, parents, threshold, inherit, mutation, sigma, renormalise } =
            evolution;
        check(*initial >= 1, "method.evolution.initial", "at least 1");
        check(*parents >= 1, "method.evolution.parents", "at least 1");
        check(threshold.is_finite() && *threshold >= 0.0, "method.evolution.threshold", "zero or a positive number");
        check(positive(*sigma), "method.evolution.sigma", "a positive number");
        for (key, probability) in [
            ("method.evolution.crossover", crossover),
            ("method.evolution.inherit", inherit),
            ("method.evolution.mutation", mutation),
            ("method.evolution.renormalise", renormalise),
        ] {
            check((0.0..=1.0).contains(probability), key, "a probability, 0 to 1");
        }
        problems
    }
}

/// How candidates are proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodConfig {
    /// Evolutionary search.
    Evolution(EvolutionConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::Evolution(EvolutionConfig::default())
    }
}

impl MethodConfig {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Evolution(_) => "evolution",
        }
    }
}

/// The end of the search, whichever comes first. Baselines, selection and report are not counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Candidates scored; a resumed search then ends with the result of an uninterrupted one.
    pub evaluations: Option<u64>,
    /// Seconds spent scoring candidates, added up over resumes.
    pub seconds: Option<f64>,
}

impl Budget {
    /// Whether it is used up.
    pub(crate) fn is_spent(&self, evaluations: u64, seconds: f64) -> bool {
        self.evaluations.is_some_and(|limit| evaluations >= limit) || self.seconds.is_some_and(|limit| seconds >= limit)
    }
}

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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_in_seconds_has_no_hidden_evaluations() {
        let config: SearchConfig = serde_json::from_str(r#"{"budget": {"seconds": 40.0}}"#).unwrap();
        assert_eq!(config.budget, Budget { evaluations: None, seconds: Some(40.0) });
        assert_eq!(serde_json::from_str::<SearchConfig>("{}").unwrap().budget.evaluations, Some(400));
    }

    #[test]
    fn methods_are_tagged_by_name() {
        let config: SearchConfig = serde_json::from_str(r#"{"method": {"evolution": {"sigma": 0.1}}}"#).unwrap();
        let MethodConfig::Evolution(evolution) = config.method;
        assert_eq!(evolution, EvolutionConfig { sigma: 0.1, ..EvolutionConfig::default() });
        assert!(serde_json::from_str::<SearchConfig>(r#"{"method": {"evolution": {"sigmma": 0.1}}}"#).is_err());
    }

    #[test]
    fn impossible_values_are_named_all_at_once() {
        assert_eq!(SearchConfig::default().validate(), []);
        let method = MethodConfig::Evolution(EvolutionConfig { mutation: 1.5, ..EvolutionConfig::default() });
        let config = SearchConfig { budget: Budget::default(), images: 1, method, ..SearchConfig::default() };
        let keys: Vec<_> = config.validate().iter().map(|p| p.key.clone()).collect();
        assert_eq!(keys, ["budget", "images", "method.evolution.mutation"]);
    }

    #[test]
    fn whichever_limit_comes_first_ends_the_search() {
        let budget = Budget { evaluations: Some(10), seconds: Some(2.0) };
        assert!(!budget.is_spent(9, 1.9));
        assert!(budget.is_spent(10, 0.0) && budget.is_spent(0, 2.0));
    }
}
