//! The names and arrangements of tensors in other programs.

use crate::card::Card;
use lcsc_diffusion::{Model, Preconditioning, PreconditioningConfig};
use lcsc_torch::{Device, Error, Kind, ParamLayout, Result, Tensor, TensorSpec, Weights, bail};
use lcsc_unet::{
    AttentionOrder, Counterpart, DecoderAttention, Heads, ImageShape, NetworkConfig, Resolution, openai_counterparts,
};
use std::path::Path;

/// Groups of all group norms in OpenAI's code.
const OPENAI_GROUPS: i64 = 32;
/// A tensor that only OpenAI's names have.
const OPENAI: &str = "input_blocks.0.0.weight";

/// The tensors of a file as the weights of a network, f32, whichever of both namings they are in.
///
/// # Errors
/// Tensors are missing, extra or mis-shaped, with their list; or the network has no counterpart in OpenAI's code.
pub fn to_ours(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    network: &NetworkConfig,
    model: &Model,
    order: AttentionOrder,
) -> Result<Weights> {
    let layout = &model.layout;
    let read = || -> Result<Weights> {
        if tensors.iter().any(|(name, _)| name == OPENAI) {
            let ours = from_openai(tensors, &counterparts(network, model.image, order)?, layout)?;
            // Their resampling filters are in the code.
            return Ok(Weights { theta: flat(layout, &ours)?, buffers: layout.init(0, Device::Cpu)?.buffers });
        }
        let tensors = without_levels(tensors, model)?;
        let expected = layout.params().iter().chain(layout.buffers());
        check(&tensors, &expected.map(|spec| (spec.name.as_str(), spec.shape.clone())).collect::<Vec<_>>())?;
        Ok(Weights { theta: flat(layout, &tensors)?, buffers: pick(layout.buffers(), &tensors)? })
    };
    read().map_err(|e| Error::file(path, e.to_string()))
}

/// The weights' tensors by the names of EDM's preconditioners, which keep noise levels as a buffer where they are of time
/// steps.
///
/// # Errors
/// EDM's code has no such network: its weights would give other images there, or none.
pub fn to_edm(mut tensors: Vec<(String, Tensor)>, card: &Card, model: &Model) -> Result<Vec<(String, Tensor)>> {
    if let Some((key, expected)) = beyond_edm(card) {
        bail!(
            "EDM's code has no network of this `{key}`, only {expected}: use the weights file as it is in code of yours"
        );
    }
    if let Some(u) = levels(model)? {
        tensors.push((LEVELS.into(), u));
    }
    Ok(tensors)
}

/// The weights' tensors by the names of OpenAI's code.
///
/// # Errors
/// The network has no counterpart there.
pub fn to_openai(
    tensors: &[(String, Tensor)],
    network: &NetworkConfig,
    image: ImageShape,
    order: AttentionOrder,
) -> Result<Vec<(String, Tensor)>> {
    let theirs = |c: &Counterpart| -> Result<(String, Tensor)> {
        match tensors.iter().find(|(name, _)| *name == c.ours) {
            Some((_, tensor)) => Ok((c.theirs.clone(), c.to_theirs(tensor)?)),
            None => Err(Error::msg(format!("the weights have no `{}`", c.ours))),
        }
    };
    counterparts(network, image, order)?.iter().map(theirs).collect()
}

/// A value of an option that EDM's code does not have, and the one that it has.
fn beyond_edm(card: &Card) -> Option<(&'static str, &'static str)> {
    if matches!(&card.preconditioning, PreconditioningConfig::Iddpm(c) if !c.learn_sigma) {
        return Some(("preconditioning.iddpm.learn_sigma", "true"));
    }
    match &card.network {
        NetworkConfig::Song(c) if c.resample != Resolution::Blocks => Some(("song.resample", "`blocks`")),
        NetworkConfig::Song(c) if c.skip_scale != std::f64::consts::FRAC_1_SQRT_2 => Some(("song.skip_scale", "√½")),
        NetworkConfig::Song(c) if c.decoder_attention != DecoderAttention::Last => {
            Some(("song.decoder_attention", "`last`"))
        }
        NetworkConfig::Adm(c) if c.resample != Resolution::Blocks => Some(("adm.resample", "`blocks`")),
        NetworkConfig::Adm(c) if !c.adaptive_scale => Some(("adm.adaptive_scale", "true")),
        NetworkConfig::Adm(c) if c.heads != Heads::Channels(64) => Some(("adm.heads", "{ channels = 64 }")),
        NetworkConfig::Adm(c) if c.min_channels_per_group != 4 => Some(("adm.min_channels_per_group", "4")),
        NetworkConfig::Song(_) | NetworkConfig::Adm(_) => None,
    }
}

/// The buffer of EDM's iDDPM preconditioner: u [M+1], from the highest noise level down to 0.
const LEVELS: &str = "u";
/// How far noise levels that were worked out in f32 may lie from ours.
const TOLERANCE: f64 = 0.01;

fn levels(model: &Model) -> Result<Option<Tensor>> {
    let Preconditioning::Iddpm(schedule) = &model.preconditioning else { return Ok(None) };
    let falling: Vec<f64> = schedule.sigmas().iter().rev().copied().chain([0.0]).collect();
    Ok(Some(Tensor::f_from_slice(&falling)?.f_to_kind(Kind::Float)?))
}

/// The tensors without the preconditioner's noise levels, which have to be those of the config.
fn without_levels(mut tensors: Vec<(String, Tensor)>, model: &Model) -> Result<Vec<(String, Tensor)>> {
    let Some(expected) = levels(model)? else { return Ok(tensors) };
    let Some(place) = tensors.iter().position(|(name, _)| name == LEVELS) else { return Ok(tensors) };
    let (_, found) = tensors.remove(place);
    let found = found.f_to_kind(Kind::Float)?;
    let same = found.size() == expected.size() && found.f_allclose(&expected, TOLERANCE, TOLERANCE * 0.01, false)?;
    if !same {
        bail!("its noise levels `{LEVELS}` {:?} are not those of preconditioning.iddpm in the config", found.size());
    }
    Ok(tensors)
}

fn counterparts(network: &NetworkConfig, image: ImageShape, order: AttentionOrder) -> Result<Vec<Counterpart>> {
    match network {
        NetworkConfig::Adm(config) if config.augment_dim > 0 => {
            bail!("OpenAI's networks see no augmentation labels: model.adm.augment_dim has to be 0")
        }
        NetworkConfig::Adm(config) if config.least_groups() != OPENAI_GROUPS => bail!(
            "OpenAI's group norms have {OPENAI_GROUPS} groups, those of this network down to {}: set \
             model.adm.min_channels_per_group = 1",
            config.least_groups()
        ),
        NetworkConfig::Adm(config) => Ok(openai_counterparts(config, image, order)),
        NetworkConfig::Song(_) => bail!("OpenAI's names are those of ADM networks; this one is `song`"),
    }
}

fn from_openai(
    tensors: Vec<(String, Tensor)>,
    table: &[Counterpart],
    layout: &ParamLayout,
) -> Result<Vec<(String, Tensor)>> {
    let spec = |c: &Counterpart| layout.params().iter().find(|spec| spec.name == c.ours);
    let pairs: Vec<(&Counterpart, &TensorSpec)> = table.iter().filter_map(|c| Some((c, spec(c)?))).collect();
    let shapes: Vec<(&str, Vec<i64>)> =
        pairs.iter().map(|(c, spec)| (c.theirs.as_str(), c.their_shape(&spec.shape))).collect();
    // Dimensions of the convolutions in attention layers tell of the order what they can.
    let of_attention = |(name, _): &&(String, Tensor)| name.ends_with(".qkv.weight");
    if let Some((name, tensor)) = tensors.iter().find(of_attention)
        && let Some((_, shape)) = shapes.iter().find(|(theirs, _)| theirs == name)
        && matches!((tensor.dim(), shape.len()), (3, 4) | (4, 3))
    {
        let orders = if tensor.dim() == 3 { "new or legacy (guided-diffusion's)" } else { "flash" };
        bail!("`{name}` has shape {:?}: it takes --attention-order {orders}", tensor.size());
    }
    check(&tensors, &shapes)?;
    let ours = |(c, spec): &(&Counterpart, &TensorSpec)| match tensors.iter().find(|(name, _)| *name == c.theirs) {
        Some((_, tensor)) => Ok((c.ours.clone(), c.to_ours(tensor, &spec.shape)?)),
        None => Err(Error::msg(format!("has no tensor `{}`", c.theirs))),
    };
    pairs.iter().map(ours).collect()
}

/// The parameters as one vector.
fn flat(layout: &ParamLayout, tensors: &[(String, Tensor)]) -> Result<Tensor> {
    let pieces = pick(layout.params(), tensors)?;
    for (spec, piece) in layout.params().iter().zip(&pieces) {
        if piece.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            bail!("its tensor `{}` holds values that are not finite: the training diverged", spec.name);
        }
    }
    let pieces = pieces.iter().map(|t| Ok(t.f_flatten(0, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&pieces, 0)?)
}

/// The tensors of these specs, f32, in their order.
fn pick(specs: &[TensorSpec], tensors: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
    let find = |spec: &TensorSpec| match tensors.iter().find(|(name, _)| *name == spec.name) {
        Some((_, tensor)) => Ok(tensor.f_to_kind(Kind::Float)?),
        None => Err(Error::msg(format!("has no tensor `{}`", spec.name))),
    };
    specs.iter().map(find).collect()
}

/// Whether the tensors are these and no others.
fn check(tensors: &[(String, Tensor)], expected: &[(&str, Vec<i64>)]) -> Result<()> {
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match tensors.iter().find(|(n, _)| n == name) {
            None => problems.push(format!("`{name}` is missing")),
            Some((_, t)) if t.size() != *shape => {
                problems.push(format!("`{name}` has shape {:?}, expected {shape:?}", t.size()));
            }
            Some((_, t)) if !matches!(t.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) => {
                problems.push(format!("`{name}` is of type {:?}, expected floats", t.kind()));
            }
            Some(_) => {}
        }
    }
    let is_extra = |name: &str| expected.iter().all(|(e, _)| *e != name);
    let extra = tensors.iter().filter(|(name, _)| is_extra(name));
    problems.extend(extra.map(|(name, _)| format!("`{name}` is not in this network")));
    if problems.is_empty() {
        return Ok(());
    }
    const SHOWN: usize = 20;
    let more = problems.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    bail!("does not fit the config's network: {}{rest}", problems[..problems.len().min(SHOWN)].join("; "))
}
