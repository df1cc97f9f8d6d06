//! Scores that several searches of one trajectory share.

use lcsc_search::{Coefficients, Fitness, Latents, Model, Scores};
use lcsc_torch::{Error, Result};
use std::collections::HashMap;

/// Scores by model and latents: those of checkpoints and averages, which every search begins with.
#[derive(Default)]
pub struct Remembered {
    scores: HashMap<String, Scores>,
}

impl Remembered {
    /// A fitness that is asked only for what is not known yet.
    pub fn before<'a>(&'a mut self, fitness: &'a mut dyn Fitness) -> impl Fitness + 'a {
        Asked { remembered: self, fitness }
    }
}

struct Asked<'a> {
    remembered: &'a mut Remembered,
    fitness: &'a mut dyn Fitness,
}

fn key(model: &Model, latents: Latents) -> Result<String> {
    let model = serde_json::to_string(model).map_err(|e| Error::msg(format!("a model's name: {e}")))?;
    Ok(format!("{latents:?} {model}"))
}

impl Fitness for Asked<'_> {
    fn prepare(&mut self, models: &[&Model]) -> Result<()> {
        let mut unknown = Vec::new();
        for model in models {
            if !self.remembered.scores.contains_key(&key(model, Latents::Search)?) {
                unknown.push(*model);
            }
        }
        self.fitness.prepare(&unknown)
    }

    fn side_by_side(&self) -> usize {
        self.fitness.side_by_side()
    }

    fn scores(&mut self, models: &[&Model], latents: Latents) -> Result<Vec<Scores>> {
        let keys = models.iter().map(|model| key(model, latents)).collect::<Result<Vec<_>>>()?;
        // What is fine-tuned is another model in each search.
        let is_new = |(model, key): &(&&Model, &String)| {
            **model == &Model::Finetuned || !self.remembered.scores.contains_key(*key)
        };
        let (new, new_keys): (Vec<&Model>, Vec<&String>) = models.iter().zip(&keys).filter(is_new).unzip();
        let found = self.fitness.scores(&new, latents)?;
        self.remembered.scores.extend(new_keys.into_iter().cloned().zip(found));
        let score = |key| self.remembered.scores.get(key).copied().ok_or_else(|| Error::msg("a score got lost"));
        keys.iter().map(score).collect()
    }

    fn gradient(&mut self, alpha: &Coefficients, step: u64) -> Result<(f64, Vec<Vec<f64>>)> {
        self.fitness.gradient(alpha, step)
    }

    fn begin_tuning(&mut self, start: &Model, logged: u64) -> Result<u64> {
        self.fitness.begin_tuning(start, logged)
    }

    fn tune(&mut self, step: u64, lr: f64) -> Result<f64> {
        self.fitness.tune(step, lr)
    }

    fn end_tuning(&mut self) -> Result<()> {
        self.fitness.end_tuning()
    }
}
