//! The (1+1) evolution strategy with the one-fifth success rule (Rechenberg 1973; Kern et al. 2004).

use super::{Member, Objective, check_positive};
use crate::candidate::Origin;
use crate::coefficients::Coefficients;
use crate::log::Evaluation;
use lcsc_torch::{Error, Invalid, Result, Stream, rng, standard_normal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The constants of the (1+1) evolution strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnePlusOneConfig {
    /// Standard deviation of the first steps.
    pub sigma: f64,
    /// What a success multiplies it with; a failure divides it by the fourth root of that.
    pub factor: f64,
}

impl Default for OnePlusOneConfig {
    fn default() -> Self {
        Self { sigma: 0.05, factor: 1.5 }
    }
}

impl OnePlusOneConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        let factor = (self.factor.is_nan() || self.factor <= 1.0)
            .then(|| Invalid::new("factor", format!("is {}, expected more than 1", self.factor)));
        check_positive("sigma", self.sigma).into_iter().chain(factor).collect()
    }
}

/// One parent, one child at a time: the better one goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnePlusOne {
    config: OnePlusOneConfig,
    objective: Objective,
    seed: u64,
    next_id: u64,
    parent: Member,
    sigma: f64,
}

impl OnePlusOne {
    pub(super) fn new(
        config: OnePlusOneConfig,
        objective: Objective,
        seed: u64,
        first_id: u64,
        parent: Member,
    ) -> Self {
        let sigma = config.sigma;
        Self { config, objective, seed, next_id: first_id, parent, sigma }
    }

    /// The parent plus σ·N(0, I) on the plane Σα = 1.
    pub(super) fn ask(&self, id: u64) -> Result<Option<(Origin, Coefficients)>> {
        if id != self.next_id {
            return Ok(None);
        }
        let rng = &mut rng(self.seed, Stream::Search, id);
        let step = |row: &Vec<f64>| {
            let z: Vec<f64> = row.iter().map(|_| standard_normal(rng)).collect();
            let mean = z.iter().sum::<f64>() / z.len() as f64;
            row.iter().zip(z).map(|(a, z)| a + self.sigma * (z - mean)).collect()
        };
        let rows: Vec<Vec<f64>> = self.parent.coefficients.rows().iter().map(step).collect();
        Ok(Some((Origin::Mutation { parent: self.parent.id }, Coefficients::new(&rows)?)))
    }

    pub(super) fn tell(&mut self, evaluation: &Evaluation) -> Result<()> {
        let child = self.objective.member(evaluation)?.ok_or_else(|| Error::msg("a candidate without coefficients"))?;
        self.next_id = child.id + 1;
        if child.score <= self.parent.score {
            self.sigma *= self.config.factor;
            self.parent = child;
        } else {
            self.sigma *= self.config.factor.powf(-0.25);
        }
        Ok(())
    }
}
