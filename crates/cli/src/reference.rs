//! What images are measured against: other images, or statistics of their features.

use lcsc_metrics::FeatureStats;
use lcsc_pickle::{Pickle, numpy::Array};
use lcsc_torch::{Context, Error, Result, Tensor, bail};
use npyz::npz::NpzArchive;
use std::path::Path;

/// The most values of a covariance: of 16,384 features.
const MAX_VALUES: u64 = 1 << 28;

/// Mean and covariance in a file of statistics: `mu` and `sigma` of an `.npz` (pytorch-fid, EDM) or a `.pkl` (EDM, EDM2).
/// None for anything else: a dataset, also where statistics come with the images (OpenAI's reference batches).
///
/// # Errors
/// The file is damaged, or its statistics are not of one number of features.
pub fn statistics(path: &Path) -> Result<Option<FeatureStats>> {
    let found = match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => from_npz(path)?,
        Some("pkl") => Some(from_pickle(path)?),
        Some(_) | None => None,
    };
    found.map(|(mean, cov)| checked(mean, cov).map_err(|e| Error::file(path, e.to_string()))).transpose()
}

fn checked(mean: Tensor, cov: Tensor) -> Result<FeatureStats> {
    let d = mean.size();
    if d.len() != 1 || cov.size() != [d[0], d[0]] {
        bail!("its mu is {:?} and its sigma {:?}, expected [D] and [D, D]", mean.size(), cov.size());
    }
    FeatureStats::from_parts(mean, cov)
}

fn from_npz(path: &Path) -> Result<Option<(Tensor, Tensor)>> {
    let mut npz = NpzArchive::open(path).at(path)?;
    let names: Vec<String> = npz.array_names().map(String::from).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    if !has("mu") || !has("sigma") || has("arr_0") {
        return Ok(None);
    }
    let mut array = |name: &str| -> Result<Tensor> {
        let Some(npy) = npz.by_name(name).at(path)? else { bail!("{}: has no `{name}`", path.display()) };
        let shape: Vec<i64> = npy.shape().iter().map(|&d| d as i64).collect();
        if npy.len() > MAX_VALUES {
            bail!("{}: its `{name}` of shape {shape:?} is too large for statistics", path.display());
        }
        let values = npy.into_vec::<f64>().at(path)?;
        Ok(Tensor::f_from_slice(&values)?.f_view(&shape[..])?)
    };
    Ok(Some((array("mu")?, array("sigma")?)))
}

/// EDM2 nests them below the name of the metric.
fn from_pickle(path: &Path) -> Result<(Tensor, Tensor)> {
    let bytes = std::fs::read(path).at(path)?;
    let named = |e: lcsc_pickle::Error| Error::file(path, e.to_string());
    let pickle = Pickle::parse(&bytes).map_err(named)?;
    let dict = pickle.get(pickle.root(), "fid").unwrap_or(pickle.root());
    let array = |name: &str| -> Result<Tensor> {
        let Some(id) = pickle.get(dict, name) else { bail!("{}: has no `{name}`", path.display()) };
        let array = Array::read(&pickle, id).map_err(named)?;
        let shape: Vec<i64> = array.shape.iter().map(|&d| d as i64).collect();
        Ok(Tensor::f_from_slice(&array.to_f64().map_err(named)?)?.f_view(&shape[..])?)
    };
    Ok((array("mu")?, array("sigma")?))
}
