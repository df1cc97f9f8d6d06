//! What images are measured against: other images, or statistics of their features.

use lcsc_metrics::FeatureStats;
use lcsc_pickle::{Pickle, numpy::Array};
use lcsc_torch::{Context, Error, Result, Tensor, bail};
use npyz::npz::NpzArchive;
use std::path::Path;

/// The most values of a covariance: of 16,384 features.
const MAX_VALUES: u64 = 1 << 28;

/// Mean and covariance in a file of statistics: `mu` and `sigma` of an `.npz` (pytorch-fid, EDM) or a `.pkl` (EDM; of EDM2's,
/// which hold those of several extractors, the one of `dim` features). None for anything else: a dataset, also where
/// statistics come with the images (OpenAI's reference batches).
///
/// # Errors
/// The file is damaged, or its statistics are not of one number of features.
pub fn statistics(path: &Path, dim: Option<i64>) -> Result<Option<FeatureStats>> {
    let found = match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => from_npz(path)?,
        Some("pkl") => Some(from_pickle(path, dim)?),
        Some(_) | None => None,
    };
    found.map(|(mean, cov)| checked(mean, cov).map_err(|e| Error::file(path, e.to_string()))).transpose()
}

fn checked(mean: Tensor, cov: Tensor) -> Result<FeatureStats> {
    let d = mean.size();
    if d.len() != 1 || d[0] == 0 || cov.size() != [d[0], d[0]] {
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
fn from_pickle(path: &Path, dim: Option<i64>) -> Result<(Tensor, Tensor)> {
    let bytes = std::fs::read(path).at(path)?;
    let named = |e: lcsc_pickle::Error| Error::file(path, e.to_string());
    let pickle = Pickle::parse(&bytes).map_err(named)?;
    let array = |dict, name: &str| -> Result<Tensor> {
        let Some(id) = pickle.get(dict, name) else { bail!("{}: has no `{name}`", path.display()) };
        let array = Array::read(&pickle, id).map_err(named)?;
        let shape: Vec<i64> = array.shape.iter().map(|&d| d as i64).collect();
        Ok(Tensor::f_from_slice(&array.to_f64().map_err(named)?)?.f_view(&shape[..])?)
    };
    let nested = ["fid", "fd_dinov2"].iter().filter_map(|metric| pickle.get(pickle.root(), metric));
    let mut found = None;
    for dict in nested.chain(std::iter::once(pickle.root())).filter(|dict| pickle.get(*dict, "mu").is_some()) {
        let mean = array(dict, "mu")?;
        if found.is_none() || dim.is_some_and(|dim| mean.size() == [dim]) {
            found = Some((mean, array(dict, "sigma")?));
        }
    }
    found.ok_or_else(|| Error::file(path, "has no `mu` and `sigma`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use npyz::WriterBuilder;
    use npyz::npz::NpzWriter;
    use npyz::zip::{CompressionMethod, write::FileOptions};

    /// An npz of statistics with these values.
    fn npz(mu: &[f64], sigma: &[f64], shape: [u64; 2]) -> Vec<u8> {
        let mut file = std::io::Cursor::new(Vec::new());
        let mut writer = NpzWriter::new(&mut file);
        let options = FileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, shape, values) in [("mu", &[mu.len() as u64][..], mu), ("sigma", &shape, sigma)] {
            let array = writer.array::<f64>(name, options).unwrap();
            let mut array = array.default_dtype().shape(shape).begin_nd().unwrap();
            array.extend(values.iter().copied()).unwrap();
            array.finish().unwrap();
        }
        drop(writer);
        file.into_inner()
    }

    fn read(bytes: &[u8]) -> Result<Option<FeatureStats>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.npz");
        std::fs::write(&path, bytes).unwrap();
        statistics(&path, None)
    }

    #[test]
    fn statistics_have_to_fit_one_another() {
        let stats = read(&npz(&[1.0, 2.0], &[3.0, 0.5, 0.5, 4.0], [2, 2])).unwrap().unwrap();
        assert_eq!((stats.dim(), stats.mean.double_value(&[1]), stats.cov.double_value(&[0, 1])), (2, 2.0, 0.5));
        let refused = |mu: &[f64], sigma: &[f64], shape| read(&npz(mu, sigma, shape)).unwrap_err().to_string();
        let text = refused(&[1.0, 2.0], &[3.0, 0.5], [1, 2]);
        assert!(text.contains("its mu is [2] and its sigma [1, 2], expected [D] and [D, D]"), "{text}");
        assert!(refused(&[1.0, f64::NAN], &[3.0, 0.5, 0.5, 4.0], [2, 2]).contains("not finite"));
        assert!(refused(&[1.0, 2.0], &[3.0, 0.5, -0.5, 4.0], [2, 2]).contains("not symmetric"));
        assert!(refused(&[], &[], [0, 0]).contains("expected [D] and [D, D]"));
    }

    #[test]
    fn damaged_statistics_are_errors() {
        let whole = npz(&[1.0, 2.0], &[3.0, 0.5, 0.5, 4.0], [2, 2]);
        for at in 0..whole.len() {
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
            // Whatever comes of it: no panic, and nothing that is not finite.
            for value in [0, b'9', 0xff] {
                let mut altered = whole.clone();
                altered[at] = value;
                if let Ok(Some(stats)) = read(&altered) {
                    assert!(stats.dim() == 2 && stats.cov.sum(lcsc_torch::Kind::Double).double_value(&[]).is_finite());
                }
            }
        }
    }
}
