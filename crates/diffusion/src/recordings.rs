//! Evaluations of a network as CUDA graphs. A graph has fixed places in memory: inputs and weights are copied there, the images
//! from there.

use crate::model::{Conditioning, Evaluation, Model};
use crate::precond::Scalings;
use lcsc_torch::tch::no_grad;
use lcsc_torch::{Graph, Result, Tensor, Weights, copied};

/// Shapes of inputs that are kept: those of a search are few, and each has memory of its own.
const MOST: usize = 8;

/// All evaluations of a model that were recorded: one for each shape of its inputs.
#[derive(Default)]
pub(crate) struct Recordings {
    /// Where all find their weights.
    weights: Option<Weights>,
    /// Whose buffers those are copies of: all candidates of a search share them.
    source: Vec<Tensor>,
    all: Vec<Recorded>,
}

struct Recorded {
    x: Tensor,
    sigma: Tensor,
    scalings: Scalings,
    conditioning: Conditioning,
    images: Tensor,
    graph: Graph,
}

impl Recordings {
    /// D(x;σ) of these weights, without gradient.
    pub fn replayed(&mut self, model: &Model, weights: &Weights, of: &Evaluation) -> Result<Tensor> {
        no_grad(|| {
            let own = self.own(weights)?;
            let index = match self.all.iter().position(|recorded| recorded.fits(of)) {
                Some(index) => index,
                None => {
                    if self.all.len() == MOST {
                        self.all.clear();
                    }
                    self.all.push(Recorded::new(model, &own, of)?);
                    self.all.len() - 1
                }
            };
            self.all[index].replayed(of)
        })
    }

    /// The weights, copied to where recorded evaluations find them: one vector, of which the pieces are cut again each time.
    fn own(&mut self, weights: &Weights) -> Result<Weights> {
        if let Some(own) = &mut self.weights {
            own.theta.f_copy_(&weights.theta)?;
            let is_same = |(a, b): (&Tensor, &Tensor)| a.data_ptr() == b.data_ptr();
            if !self.source.iter().zip(&weights.buffers).all(is_same) {
                own.buffers.iter_mut().zip(&weights.buffers).try_for_each(|(own, other)| own.f_copy_(other))?;
                self.source = weights.buffers.iter().map(Tensor::shallow_clone).collect();
            }
            return Ok(own.with_theta(own.theta.shallow_clone()));
        }
        let buffers = weights.buffers.iter().map(copied).collect::<Result<_>>()?;
        self.source = weights.buffers.iter().map(Tensor::shallow_clone).collect();
        let own = self.weights.insert(Weights { theta: copied(&weights.theta)?, buffers });
        Ok(own.with_theta(own.theta.shallow_clone()))
    }
}

impl Recorded {
    fn new(model: &Model, weights: &Weights, of: &Evaluation) -> Result<Self> {
        let copied_if = |t: &Option<Tensor>| t.as_ref().map(copied).transpose();
        let (x, sigma, scalings) = (copied(of.x)?, copied(of.sigma)?, of.scalings);
        let conditioning = Conditioning {
            labels: copied_if(&of.conditioning.labels)?,
            augment_labels: copied_if(&of.conditioning.augment_labels)?,
        };
        let evaluation = Evaluation { x: &x, sigma: &sigma, scalings, conditioning: &conditioning };
        let mut images = None;
        let graph = Graph::record(x.device(), || {
            images = Some(model.evaluate(&model.params(weights)?, &evaluation, false));
            Ok(())
        })?;
        let Some(images) = images else { lcsc_torch::bail!("nothing was recorded") };
        Ok(Self { x, sigma, scalings, conditioning, images, graph })
    }

    fn fits(&self, of: &Evaluation) -> bool {
        let same =
            |a: &Option<Tensor>, b: &Option<Tensor>| a.as_ref().map(Tensor::size) == b.as_ref().map(Tensor::size);
        let (own, other) = (&self.conditioning, of.conditioning);
        (self.x.size(), self.x.device()) == (of.x.size(), of.x.device())
            && self.scalings == of.scalings
            && same(&own.labels, &other.labels)
            && same(&own.augment_labels, &other.augment_labels)
    }

    fn replayed(&mut self, of: &Evaluation) -> Result<Tensor> {
        self.x.f_copy_(of.x)?;
        self.sigma.f_copy_(of.sigma)?;
        let pairs = [
            (&mut self.conditioning.labels, &of.conditioning.labels),
            (&mut self.conditioning.augment_labels, &of.conditioning.augment_labels),
        ];
        for pair in pairs {
            if let (Some(own), Some(other)) = pair {
                own.f_copy_(other)?;
            }
        }
        self.graph.replay()?;
        copied(&self.images)
    }
}
