//! What a search is told.

use crate::methods::{CmaEsConfig, EvolutionConfig, FinetuneConfig, GradientConfig, MethodName, OnePlusOneConfig};
use lcsc_torch::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A search of coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// When `lcsc run` searches.
    pub when: When,
    /// How candidates are proposed: one method, or several in sequence, each beginning at the best that is known.
    pub method: Vec<MethodName>,
    /// When to stop.
    pub budget: Budget,
    /// Which parameters share coefficients; unset: `levels` for `gradient`, `one` for the others.
    pub groups: Option<Groups>,
    /// Images sampled to score a candidate, N.
    pub images: u64,
    /// Images sampled to score a finalist, from latents of their own.
    pub selection_images: u64,
    /// Images sampled for each row of the final table and each report seed, from latents used nowhere else.
    pub report_images: u64,
    /// Sets of report latents: the final table shows mean and spread over them.
    pub report_seeds: u64,
    /// Resamples behind the confidence interval of each row of the final table.
    pub bootstrap: u64,
    /// The best few of each family that are scored again on the selection latents.
    pub finalists: usize,
    /// The stage whose checkpoints are combined; the last one unless named.
    pub stage: Option<String>,
    /// Which saved weights are combined: `raw`, names of EMA tracks, or `all`.
    pub tracks: Vec<String>,
    /// Only checkpoints of the last so many images; all unless given.
    pub window: Option<u64>,
    /// At most so many checkpoints a track, evenly over the window; all unless given.
    pub checkpoints: Option<usize>,
    /// The matrix of checkpoints stays on the device up to this many GiB.
    pub memory_gib: f64,
    /// Where it does not, it stays in host memory up to this many GiB, else in mapped files. On the CPU `memory_gib`
    /// alone counts.
    pub host_memory_gib: f64,
    /// Images sampled at once. On a CPU, networks of up to 4 M parameters take up to four such chunks side by side, one a core.
    pub chunk: u64,
    /// Images sampled and differentiated at once in a step along a gradient, which takes far more memory; as `chunk` unless given.
    /// Where the device has no room for so many, they are halved until it has.
    pub gradient_chunk: Option<u64>,
    /// What is added to the distance.
    pub penalty: Penalty,
    /// Constants of `evolution`.
    pub evolution: EvolutionConfig,
    /// Constants of `one-plus-one`.
    pub one_plus_one: OnePlusOneConfig,
    /// Constants of `cma-es`.
    pub cma_es: CmaEsConfig,
    /// Constants of `gradient`.
    pub gradient: GradientConfig,
    /// Constants of `finetune`.
    pub finetune: FinetuneConfig,
    /// The searches while training, for `when = "during"`.
    pub during: During,
}

/// When `lcsc run` searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// After the training.
    #[default]
    After,
    /// After the training, and with small budgets while it goes on.
    During,
    /// Not at all: the run ends with the training.
    Off,
}

/// The searches while training. Each begins at the coefficients that the one before found, moved along the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct During {
    /// Images of the searched stage from one search to the next.
    pub every_nimg: u64,
    /// The end of each.
    pub budget: Budget,
}

impl Default for During {
    fn default() -> Self {
        Self { every_nimg: 1_000_000, budget: Budget { evaluations: Some(20), ..Budget::default() } }
    }
}

/// Which parameters share coefficients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Groups {
    /// All of them.
    One,
    /// Those of input and embedding, of each encoder level, of the middle, and of each decoder level.
    Levels,
    /// Those whose name the same pattern fits first (`*` stands for any text, `?` for one character), and the rest.
    Patterns(Vec<String>),
}

/// Added to the distance of a candidate: keeps coefficients small, or near to where the search began.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Penalty {
    /// Factor of Σα², the mean over groups.
    pub square: f64,
    /// Factor of Σ(α − α_start)², the mean over groups.
    pub distance: f64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            when: When::After,
            method: vec![MethodName::Gradient],
            budget: Budget { evaluations: Some(150), ..Budget::default() },
            groups: None,
            images: 1000,
            selection_images: 2000,
            report_images: 5000,
            report_seeds: 3,
            bootstrap: 20,
            finalists: 5,
            stage: None,
            tracks: vec!["raw".into()],
            window: None,
            checkpoints: None,
            memory_gib: 4.0,
            host_memory_gib: 16.0,
            chunk: 250,
            gradient_chunk: None,
            penalty: Penalty::default(),
            evolution: EvolutionConfig::default(),
            one_plus_one: OnePlusOneConfig::default(),
            cma_es: CmaEsConfig::default(),
            gradient: GradientConfig::default(),
            finetune: FinetuneConfig::default(),
            during: During::default(),
        }
    }
}

impl SearchConfig {
    /// Which parameters share coefficients when `method` searches.
    pub fn groups(&self, method: MethodName) -> Groups {
        let default = || if method == MethodName::Gradient { Groups::Levels } else { Groups::One };
        self.groups.clone().unwrap_or_else(default)
    }

    /// The methods that search; the grid of EMA profiles is scored in any case.
    pub fn searching(&self) -> Vec<MethodName> {
        self.method.iter().copied().filter(|m| *m != MethodName::EmaGrid).collect()
    }

    /// Images sampled and differentiated at once, where there is room.
    pub fn gradient_chunk(&self) -> u64 {
        self.gradient_chunk.unwrap_or(self.chunk)
    }

    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Invalid::new(key, format!("expected {expected}")));
            }
        };
        let names = MethodName::ALL.map(MethodName::name).join(", ");
        check(!self.method.is_empty(), "method", &format!("at least one of {names}"));
        check(self.images >= 2, "images", "at least 2: a covariance is estimated from them");
        check(self.selection_images >= 2, "selection_images", "at least 2: a covariance is estimated from them");
        check(self.report_images > 3, "report_images", "at least 4: precision and recall look at 3 neighbours");
        check(self.report_seeds >= 1, "report_seeds", "at least 1");
        check(self.bootstrap >= 2, "bootstrap", "at least 2: a spread is estimated from them");
        check(self.finalists >= 1, "finalists", "at least 1");
        check(!self.tracks.is_empty(), "tracks", "`raw`, names of EMA tracks, or `all`");
        check(self.window.is_none_or(|w| w > 0), "window", "at least 1 image");
        check(self.checkpoints.is_none_or(|k| k > 1), "checkpoints", "at least 2");
        check(self.memory_gib >= 0.0, "memory_gib", "zero or a positive number");
        check(self.host_memory_gib >= 0.0, "host_memory_gib", "zero or a positive number");
        check(self.chunk >= 1, "chunk", "at least 1");
        check(self.gradient_chunk != Some(0), "gradient_chunk", "at least 1");
        check(self.penalty.square >= 0.0, "penalty.square", "zero or a positive number");
        check(self.penalty.distance >= 0.0, "penalty.distance", "zero or a positive number");
        check(self.during.every_nimg >= 1, "during.every_nimg", "at least 1 image");
        let patterns = !matches!(&self.groups, Some(Groups::Patterns(patterns)) if patterns.is_empty());
        check(patterns, "groups.patterns", "at least one pattern");
        problems.extend(self.budget.validate().into_iter().map(|i| i.under("budget")));
        problems.extend(self.during.budget.validate().into_iter().map(|i| i.under("during.budget")));
        problems.extend(self.evolution.validate().into_iter().map(|i| i.under("evolution")));
        problems.extend(self.one_plus_one.validate().into_iter().map(|i| i.under("one_plus_one")));
        problems.extend(self.cma_es.validate().into_iter().map(|i| i.under("cma_es")));
        problems.extend(self.gradient.validate().into_iter().map(|i| i.under("gradient")));
        problems.extend(self.finetune.validate().into_iter().map(|i| i.under("finetune")));
        problems
    }
}

/// The end of a search, whichever limit comes first; several methods share it evenly. Baselines, finalists, selection and
/// report are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Candidates scored, or steps taken; a resumed search then ends with the result of an uninterrupted one.
    pub evaluations: Option<u64>,
    /// Seconds spent, added up over resumes and workers.
    pub seconds: Option<f64>,
    /// Images sampled.
    pub images: Option<u64>,
    /// Evaluations since the best score after which a method gives up; for methods that draw fresh latents, since the best
    /// mean of ten scores. As each score may be the last, candidates are merged and scored one by one.
    pub patience: Option<u64>,
}

/// What a method has used up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Spent {
    pub(crate) evaluations: u64,
    pub(crate) seconds: f64,
    pub(crate) images: u64,
}

impl Budget {
    /// The part of each of `methods` methods.
    pub(crate) fn share(&self, methods: usize) -> Budget {
        let n = methods.max(1) as u64;
        Budget {
            evaluations: self.evaluations.map(|e| e.div_ceil(n)),
            seconds: self.seconds.map(|s| s / n as f64),
            images: self.images.map(|i| i.div_ceil(n)),
            patience: self.patience,
        }
    }

    /// How much of it is used up: 1 at the end.
    pub(crate) fn fraction(&self, spent: Spent) -> f64 {
        let part = |used: f64, limit: f64| if limit > 0.0 { used / limit } else { 1.0 };
        let parts = [
            self.evaluations.map(|limit| part(spent.evaluations as f64, limit as f64)),
            self.seconds.map(|limit| part(spent.seconds, limit)),
            self.images.map(|limit| part(spent.images as f64, limit as f64)),
        ];
        parts.into_iter().flatten().fold(0.0, f64::max)
    }

    fn validate(&self) -> Vec<Invalid> {
        let Self { evaluations, seconds, images, patience } = *self;
        let mut problems = Vec::new();
        if evaluations.is_none() && seconds.is_none() && images.is_none() {
            problems
                .push(Invalid::new("evaluations", "expected a limit: `evaluations`, `seconds`, `images` or several"));
        }
        if seconds.is_some_and(|s| s <= 0.0) {
            problems.push(Invalid::new("seconds", "expected a positive number"));
        }
        if patience == Some(0) {
            problems.push(Invalid::new("patience", "expected at least 1"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_in_seconds_has_no_hidden_evaluations() {
        let config: SearchConfig = serde_json::from_str(r#"{"budget": {"seconds": 60.0}}"#).unwrap();
        assert_eq!(config.budget, Budget { seconds: Some(60.0), ..Budget::default() });
        assert!(config.validate().is_empty() && SearchConfig::default().validate().is_empty());
    }

    #[test]
    fn the_first_limit_reached_is_the_end() {
        let budget = Budget { evaluations: Some(10), seconds: Some(5.0), images: Some(10_000), patience: None };
        let spent = |evaluations, seconds, images| Spent { evaluations, seconds, images };
        assert_eq!(budget.fraction(spent(4, 1.0, 3000)), 0.4);
        assert_eq!(budget.fraction(spent(4, 2.5, 3000)), 0.5);
        assert_eq!(budget.fraction(spent(4, 2.5, 10_000)), 1.0);
        let half = budget.share(2);
        assert_eq!((half.evaluations, half.seconds, half.images), (Some(5), Some(2.5), Some(5000)));
        assert_eq!(Budget { evaluations: Some(0), ..Budget::default() }.fraction(Spent::default()), 1.0);
    }

    #[test]
    fn everything_that_cannot_work_is_named() {
        let config = SearchConfig {
            method: vec![],
            budget: Budget::default(),
            groups: Some(Groups::Patterns(vec![])),
            images: 1,
            chunk: 0,
            gradient_chunk: Some(0),
            evolution: EvolutionConfig { sigma: 0.0, inherit: 1.5, ..EvolutionConfig::default() },
            gradient: GradientConfig { lr: 0.0, ..GradientConfig::default() },
            ..SearchConfig::default()
        };
        let keys: Vec<_> = config.validate().iter().map(|p| p.key.clone()).collect();
        let expected = [
            "method",
            "images",
            "chunk",
            "gradient_chunk",
            "groups.patterns",
            "budget.evaluations",
            "evolution.sigma",
            "evolution.inherit",
            "gradient.lr",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn methods_that_follow_gradients_have_groups() {
        let config: SearchConfig = serde_json::from_str(r#"{"method": ["ema-grid", "cma-es", "gradient"]}"#).unwrap();
        assert_eq!(config.searching(), [MethodName::CmaEs, MethodName::Gradient]);
        assert_eq!(config.groups(MethodName::Gradient), Groups::Levels);
        assert_eq!(config.groups(MethodName::CmaEs), Groups::One);
        let named = SearchConfig { groups: Some(Groups::One), ..config };
        assert_eq!(named.groups(MethodName::Gradient), Groups::One);
    }
}
