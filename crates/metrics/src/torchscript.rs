//! Any TorchScript module as an extractor: NVIDIA's `inception-2015-12-05.pt`, a scripted DINOv2 or CLIP.

use crate::extractor::rgb;
use lcsc_torch::{Context, Device, Error, Kind, Result, Tensor, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use tch::{CModule, IValue};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

/// The most that is read of one source file inside an archive, in bytes.
const SOURCE: u64 = 16 << 20;

/// A module that maps pixels f32 `[B,3,H,W]` in 0…255 to features `[B,D]`; it resizes and normalises them itself.
#[derive(Debug)]
pub struct TorchScript {
    module: CModule,
    path: PathBuf,
    output: Output,
    dim: i64,
    hash: String,
    device: Device,
}

/// Which of a module's results are the features.
#[derive(Debug, Clone, PartialEq)]
enum Output {
    /// The only one.
    Whole,
    /// That of a call whose arguments after the image are these.
    Flag { name: String, arguments: Vec<bool> },
    /// An entry of a dict.
    Key(String),
    /// An entry of a tuple.
    Index(usize),
}

impl Output {
    /// What `name` means for a module that gives `plain` when it is called with an image alone, if that is enough for it.
    fn named(name: &str, plain: Option<IValue>, path: &Path, bytes: &[u8]) -> Result<Self> {
        let inside = match &plain {
            Some(IValue::GenericDict(entries)) => entries.iter().any(|(k, _)| *k == IValue::String(name.into())),
            Some(IValue::Tuple(_) | IValue::TensorList(_)) => name.parse::<usize>().is_ok(),
            Some(_) | None => false,
        };
        let flags = if inside { None } else { flags(path, bytes, name)? };
        Ok(match (flags, name.parse()) {
            (Some(arguments), _) => Self::Flag { name: name.into(), arguments },
            (None, Ok(index)) => Self::Index(index),
            (None, Err(_)) => Self::Key(name.into()),
        })
    }
}

impl TorchScript {
    /// Opens a module and tries it on an image `[C,H,W]`. `output` is the name of a boolean argument of `forward` that
    /// is to be true (`return_features` of NVIDIA's Inception), else the key of the features in a dict, or their index
    /// in a tuple.
    ///
    /// # Errors
    /// The file cannot be read or is no TorchScript module, or its result is no features `[1,D]`.
    pub fn open(path: &Path, output: Option<&str>, [c, h, w]: [i64; 3], device: Device) -> Result<TorchScript> {
        let bytes = std::fs::read(path).at(path)?;
        let hash = hex(&Sha256::digest(&bytes), 4);
        let mut module = CModule::load_data_on_device(&mut bytes.as_slice(), device)
            .map_err(|e| Error::file(path, format!("is no TorchScript module that runs here: {}", first_line(&e))))?;
        module.f_set_eval()?;
        let probe = Tensor::f_zeros([1, c, h, w], (Kind::Float, device))?;
        let mut opened = TorchScript { module, path: path.into(), output: Output::Whole, dim: 0, hash, device };
        if let Some(name) = output {
            let plain = tch::no_grad(|| opened.module.forward_is(&[IValue::Tensor(rgb(&probe))]));
            opened.output = Output::named(name, plain.ok(), path, &bytes)?;
        }
        opened.dim = tch::no_grad(|| opened.forward(&probe))?.size()[1];
        Ok(opened)
    }

    /// Features f32 [B,D] of pixels f32 [B,1 or 3,H,W] in [−1,1].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let images = rgb(x) * 127.5 + 127.5;
        let mut arguments = vec![IValue::Tensor(images)];
        if let Output::Flag { arguments: flags, .. } = &self.output {
            arguments.extend(flags.iter().map(|&flag| IValue::Bool(flag)));
        }
        let result = self.module.forward_is(&arguments);
        let result = result.map_err(|e| Error::file(&self.path, format!("its forward failed: {}", first_line(&e))))?;
        let features = self.select(result)?.f_to_kind(Kind::Float)?;
        match features.size()[..] {
            [b, ..] if b == x.size()[0] && features.dim() > 1 => Ok(features.f_flatten(1, -1)?),
            _ => Err(self.unfit(&format!("a tensor {:?} for {} images", features.size(), x.size()[0]))),
        }
    }

    fn select(&self, result: IValue) -> Result<Tensor> {
        let found = match (&self.output, result) {
            (Output::Whole | Output::Flag { .. }, found) => Some(found),
            (Output::Key(key), IValue::GenericDict(entries)) => {
                entries.into_iter().find(|(k, _)| *k == IValue::String(key.clone())).map(|(_, value)| value)
            }
            (Output::Index(i), IValue::Tuple(entries)) => entries.into_iter().nth(*i),
            (Output::Index(i), IValue::TensorList(entries)) => entries.into_iter().nth(*i).map(IValue::Tensor),
            (Output::Key(_) | Output::Index(_), _) => None,
        };
        match found {
            Some(IValue::Tensor(features)) => Ok(features),
            Some(_) => Err(self.unfit("something else than a tensor")),
            None => Err(self.unfit("a result without it")),
        }
    }

    fn unfit(&self, found: &str) -> Error {
        let output = match &self.output {
            Output::Whole => "without `output`".into(),
            Output::Flag { name, .. } | Output::Key(name) => format!("with output = \"{name}\""),
            Output::Index(i) => format!("with output = \"{i}\""),
        };
        Error::file(
            &self.path,
            format!(
                "gives {found} {output}, expected features [B, D]: `output` is a boolean argument of its `forward`, the key \
                 of the features in a dict, or their index in a tuple"
            ),
        )
    }

    pub(crate) fn dim(&self) -> i64 {
        self.dim
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    pub(crate) fn convention(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let output = match &self.output {
            Output::Whole => String::new(),
            Output::Flag { name, .. } | Output::Key(name) => format!(" {name}"),
            Output::Index(i) => format!(" {i}"),
        };
        format!("torchscript {name}{output} {}-d weights {} resize of its own", self.dim, self.hash)
    }
}

/// The first `n` bytes in hexadecimal.
fn hex(bytes: &[u8], n: usize) -> String {
    bytes.iter().take(n).fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// libtorch's messages go on with a stack trace.
fn first_line(e: &tch::TchError) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// The boolean arguments of `forward` up to `name`, which is true, as the module's own source declares them.
fn flags(path: &Path, bytes: &[u8], name: &str) -> Result<Option<Vec<bool>>> {
    let broken = |e: &dyn std::fmt::Display| Error::file(path, format!("is no whole TorchScript archive ({e})"));
    // PyTorch's end records can be taken for those of a zip behind something else, which its files never are.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, Cursor::new(bytes)).map_err(|e| broken(&e))?;
    for i in 0..archive.len() {
        let file = archive.by_index(i).map_err(|e| broken(&e))?;
        if !file.name().map_err(|e| broken(&e))?.ends_with(".py") {
            continue;
        }
        let mut source = String::new();
        file.take(SOURCE).read_to_string(&mut source).map_err(|e| broken(&e))?;
        for head in source.split("def forward(self").skip(1) {
            let arguments = head.split("->").next().unwrap_or_default().trim().trim_end_matches([')', ':', ' ']);
            if let Some(flags) = flags_up_to(name, arguments) {
                return if let Some(flags) = flags {
                    Ok(Some(flags))
                } else {
                    bail!("{}: `{name}` of its `forward` follows arguments that are not boolean", path.display())
                };
            }
        }
    }
    Ok(None)
}

/// None without a boolean argument `name`; nothing inside where others before it are in the way.
fn flags_up_to(name: &str, arguments: &str) -> Option<Option<Vec<bool>>> {
    let declared =
        |argument: &str| argument.split(':').next().map(str::trim) == Some(name) && argument.contains("bool");
    // The rest of `self` and the image come first.
    let arguments: Vec<&str> = arguments.split(',').skip(2).collect();
    let last = arguments.iter().position(|a| declared(a))?;
    let default = |argument: &&str| match argument.split('=').nth(1).map(str::trim) {
        Some("True") => Some(true),
        Some("False") => Some(false),
        Some(_) | None => None,
    };
    let before: Option<Vec<bool>> = arguments[..last].iter().map(default).collect();
    Some(before.map(|flags| [flags, vec![true]].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_in_a_signature() {
        let nvidia = ": __torch__.Inception,\n    img: Tensor,\n    use_fp16: bool=False,\n    return_features: bool=False,\n    no_output_bias: bool=False";
        assert_eq!(flags_up_to("return_features", nvidia), Some(Some(vec![false, true])));
        assert_eq!(flags_up_to("no_output_bias", nvidia), Some(Some(vec![false, false, true])));
        assert_eq!(flags_up_to("pool3", nvidia), None);
        assert_eq!(flags_up_to("b", ", x: Tensor, n: int=3, b: bool=False"), Some(None));
    }

    /// A module scripted by tracing: the mean of each channel.
    fn traced(folder: &Path) -> PathBuf {
        let path = folder.join("mean.pt");
        let mut closure = |inputs: &[Tensor]| vec![inputs[0].mean_dim([2i64, 3].as_slice(), false, Kind::Float)];
        let example = Tensor::zeros([1, 3, 4, 4], (Kind::Float, Device::Cpu));
        CModule::create_by_tracing("Mean", "forward", &[example], &mut closure).unwrap().save(&path).unwrap();
        path
    }

    #[test]
    fn a_traced_module_sees_pixels_from_0_to_255() {
        let folder = tempfile::tempdir().unwrap();
        let path = traced(folder.path());
        let module = TorchScript::open(&path, None, [3, 4, 4], Device::Cpu).unwrap();
        let x = Tensor::from_slice(&[-1.0f32, 0.0, 1.0]).view([1, 3, 1, 1]).expand([2, 3, 4, 4], false);
        let features = module.forward(&x).unwrap();
        assert_eq!(features.size(), [2, 3]);
        assert_eq!(Vec::<f32>::try_from(features.get(1)).unwrap(), [0.0, 127.5, 255.0]);
        // Grey images are seen as RGB.
        assert_eq!(module.forward(&x.narrow(1, 2, 1)).unwrap().double_value(&[0, 0]), 255.0);
        let convention = module.convention();
        assert!(convention.starts_with("torchscript mean.pt 3-d weights ") && module.dim() == 3, "{convention}");
    }

    #[test]
    fn a_scripted_module_is_asked_for_features_by_its_argument() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/scripted.pt");
        let open = |output| TorchScript::open(&path, output, [3, 4, 4], Device::Cpu);
        let module = open(Some("return_features")).unwrap();
        let x = Tensor::from_slice(&[-1.0f32, 0.0, 1.0]).view([1, 3, 1, 1]).expand([2, 3, 4, 4], false);
        let x = x.copy().set_requires_grad(true);
        let features = module.forward(&x).unwrap();
        assert_eq!(Vec::<f32>::try_from(features.get(1)).unwrap(), [0.0, 127.5, 255.0]);
        // Gradients reach the pixels: each of 16 has a share in the mean of its channel.
        features.sum(Kind::Float).backward();
        assert_eq!(x.grad().double_value(&[1, 2, 3, 3]), 127.5 / 16.0);
        assert!(open(None).unwrap_err().to_string().contains("gives a tensor [1] for 1 images without `output`"));
    }

    #[test]
    fn other_files_and_outputs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = traced(folder.path());
        let error =
            |path: &Path, output| TorchScript::open(path, output, [3, 4, 4], Device::Cpu).unwrap_err().to_string();
        let text = error(&path, Some("pool3"));
        assert!(text.contains("a result without it with output = \"pool3\", expected features [B, D]"), "{text}");
        let whole = std::fs::read(&path).unwrap();
        let half = folder.path().join("half.pt");
        std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
        let text = error(&half, None);
        assert!(text.contains("half.pt") && text.contains("no TorchScript module"), "{text}");
        assert!(error(&half, Some("x")).contains("no TorchScript module"));
        for cut in (0..whole.len()).step_by(97) {
            std::fs::write(&half, &whole[..cut]).unwrap();
            assert!(error(&half, None).contains("half.pt"), "cut at {cut}");
        }
    }
}
