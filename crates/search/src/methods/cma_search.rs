//! CMA-ES on the plane Σα = 1.

use super::plane::{from_coordinates, to_coordinates};
use super::{CmaEs, CmaEsConfig, Objective};
use crate::candidate::{Model, Origin};
use crate::coefficients::Coefficients;
use crate::log::Evaluation;
use lcsc_torch::{Error, Result, Stream, rng, standard_normal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// CMA-ES over the coordinates of α − α_start in an orthonormal basis of the vectors that sum to zero, G·(K−1) of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CmaSearch {
    strategy: CmaEs,
    objective: Objective,
    seed: u64,
    first_id: u64,
    /// Points of the present generation with their scores.
    told: BTreeMap<u64, (Vec<f64>, f64)>,
}

impl CmaSearch {
    pub(super) fn new(config: &CmaEsConfig, objective: Objective, seed: u64, first_id: u64) -> Self {
        let n = objective.start.groups() * (objective.start.checkpoints() - 1);
        Self { strategy: CmaEs::new(config, vec![0.0; n]), objective, seed, first_id, told: BTreeMap::new() }
    }

    /// The first id of the present generation.
    fn begin(&self) -> u64 {
        self.first_id + self.strategy.generation() * self.strategy.population() as u64
    }

    /// A point of the present generation.
    pub(super) fn ask(&self, id: u64) -> Result<Option<(Origin, Coefficients)>> {
        let (begin, population) = (self.begin(), self.strategy.population() as u64);
        if !(begin..begin + population).contains(&id) {
            return Ok(None);
        }
        let rng = &mut rng(self.seed, Stream::Search, id);
        let y = self.strategy.point(|| standard_normal(rng));
        let start = self.objective.start.rows();
        let moved = |(row, y): (&Vec<f64>, &[f64])| row.iter().zip(from_coordinates(y)).map(|(a, d)| a + d).collect();
        let rows: Vec<Vec<f64>> = start.iter().zip(y.chunks(start[0].len() - 1)).map(moved).collect();
        let generation = self.strategy.generation();
        Ok(Some((Origin::Generation { generation }, Coefficients::new(&rows)?)))
    }

    /// Takes a score in; the last one of a generation begins the next.
    pub(super) fn tell(&mut self, evaluation: &Evaluation) -> Result<()> {
        let Model::Coefficients(alpha) = &evaluation.candidate.model else {
            return Err(Error::msg("a candidate without coefficients"));
        };
        let rows = alpha.rows().iter().zip(self.objective.start.rows());
        let y = rows.flat_map(|(a, s)| to_coordinates(&a.iter().zip(s).map(|(a, s)| a - s).collect::<Vec<_>>()));
        let score = self.objective.score(alpha, evaluation.scores.fd);
        self.told.insert(evaluation.candidate.id, (y.collect(), score));
        if self.told.len() == self.strategy.population() {
            let generation: Vec<(Vec<f64>, f64)> = std::mem::take(&mut self.told).into_values().collect();
            self.strategy.tell(&generation);
        }
        Ok(())
    }
}
