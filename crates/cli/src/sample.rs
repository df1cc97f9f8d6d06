//! `lcsc sample`: images from a weights file.

use crate::args::SampleArgs;
use crate::{Ended, card, progress, session, ui};
use lcsc_diffusion::{Denoiser, Draw, LatentSet, Room, SamplerConfig, generate, random_classes};
use lcsc_report::ImageBatch;
use lcsc_torch::{Context, Device, Group, Kind, Result, Stream, Tensor, bail, catch, derive_seed, to_u8};
use lcsc_train::{image_batch, report_error};
use miette::IntoDiagnostic;
use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Where images go.
enum Output {
    Npz(PathBuf),
    Sheet(PathBuf),
    Folder(PathBuf),
}

impl Output {
    fn parse(path: &Path) -> miette::Result<Self> {
        let path = path.to_path_buf();
        match path.extension().and_then(|e| e.to_str()) {
            _ if path.is_dir() || path.to_string_lossy().ends_with('/') => Ok(Self::Folder(path)),
            Some("npz") => Ok(Self::Npz(path)),
            Some("png") => Ok(Self::Sheet(path)),
            Some(_) | None => {
                miette::bail!(
                    "--out {}: expected a name ending in .npz or .png, or a folder ending in /",
                    path.display()
                )
            }
        }
    }

    /// Makes the folder, so that a wrong place is found before any work.
    fn prepare(&self) -> Result<()> {
        let folder = match self {
            Self::Folder(path) => path.as_path(),
            Self::Npz(path) | Self::Sheet(path) => path.parent().unwrap_or(Path::new(".")),
        };
        std::fs::create_dir_all(folder).at(folder)
    }
}

/// Samples and writes.
pub fn command(args: &SampleArgs, group: &Group) -> miette::Result<Ended> {
    let output = Output::parse(&args.out)?;
    if args.n == 0 {
        miette::bail!("--n 0: expected at least 1");
    }
    let device = session::machine(args.machine.device, args.machine.threads, group)?;
    let (card, model, weights) = card::open_alike(&args.weights, device, group)?;
    let sampler = card::sampler(&card, &model, args.sampler.as_deref())?;
    group.all_ok(if group.leads() { output.prepare() } else { Ok(()) }).into_diagnostic()?;
    let bar = progress::bar("sampling", args.n, "images");
    let latents = LatentSet { seed: args.seed, stream: Stream::SampleLatents, n: args.n, chunk: args.machine.chunk };
    let images = catch("sampling", || {
        let mut all = Vec::new();
        chunks(&model.bind(&weights)?, &sampler, latents, (device, group), |images| {
            bar.inc(images.size()[0] as u64);
            if group.leads() {
                all.push(images.f_to(Device::Cpu)?);
            }
            Ok(())
        })?;
        Ok(if group.leads() { Some(Tensor::f_cat(&all, 0)?) } else { None })
    })
    .into_diagnostic()?;
    drop(bar);
    let Some(images) = images else { return Ok(Ended::Done) };
    let seed = derive_seed(args.seed, Stream::SampleLatents, 0);
    let classes = random_classes(seed, 0, args.n as usize, card.image.label_dim, Device::Cpu);
    write(&output, &images, classes.as_ref()).into_diagnostic()?;
    ui::say!("{} images, {} NFE each: {}", args.n, sampler.nfe(), args.out.display());
    Ok(Ended::Done)
}

/// Calls `with` for the samples u8 `[n,C,H,W]` of each chunk, in their order, on all ranks.
pub fn chunks(
    net: &Denoiser,
    sampler: &SamplerConfig,
    latents: LatentSet,
    (device, group): (Device, &Group),
    mut with: impl FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    let draws = latents.among(group.size()).draws();
    let rows: Vec<usize> = draws.iter().map(|draw| draw.n).collect();
    let [c, h, w] = net.model().image.chw();
    let none = Tensor::f_empty([0, c, h, w], (Kind::Uint8, device))?;
    let room = Room::for_work("sampling");
    let sample = |i: usize| chunk(net, sampler, draws[i], device, &room);
    let at_once = net.model().chunks_at_once(device);
    group.in_turn(&rows, &none, at_once, sample, |_, images| with(images).map(|()| true))
}

/// Samples u8 `[n,C,H,W]`, in pieces where there is no room for all of them at once.
pub fn chunk(net: &Denoiser, sampler: &SamplerConfig, draw: Draw, device: Device, room: &Room) -> Result<Tensor> {
    let Draw { first, n, .. } = draw;
    let pieces = room.in_pieces(draw, device, |Draw { seed, stream, first, n }| {
        Ok(generate(net, sampler, seed, stream, first, n, device)?.images)
    });
    let images = Tensor::f_cat(&pieces?, 0)?;
    if images.isfinite().all().int64_value(&[]) == 0 {
        bail!("samples {first} to {} hold values that are not finite", first + n as u64 - 1);
    }
    Ok(to_u8(&images))
}

fn write(output: &Output, images: &Tensor, classes: Option<&Tensor>) -> Result<()> {
    match output {
        Output::Npz(path) => write_npz(path, images, classes),
        Output::Sheet(path) => {
            let columns = (images.size()[0] as f64).sqrt().ceil() as usize;
            lcsc_report::write_grid(path, &image_batch(images)?, columns).map_err(report_error)
        }
        Output::Folder(path) => write_pngs(path, &image_batch(images)?),
    }
}

/// `arr_0` uint8 `[N,H,W,C]`, and the classes as `arr_1` int64 `[N]` where there are any, as OpenAI's reference
/// batches.
fn write_npz(path: &Path, images: &Tensor, classes: Option<&Tensor>) -> Result<()> {
    let shape: Vec<u64> = [0, 2, 3, 1].iter().map(|&axis: &usize| images.size()[axis] as u64).collect();
    let nhwc = Vec::<u8>::try_from(images.permute([0, 2, 3, 1]).f_flatten(0, -1)?)?;
    let classes = classes.map(Vec::<i64>::try_from).transpose()?;
    let mut file = Cursor::new(Vec::new());
    let mut npz = NpzWriter::new(&mut file);
    add_array(&mut npz, "arr_0", &shape, nhwc).at(path)?;
    if let Some(classes) = classes {
        add_array(&mut npz, "arr_1", &shape[..1], classes).at(path)?;
    }
    drop(npz); // writes the zip's directory
    lcsc_torch::write_atomic(path, &file.into_inner())
}

fn add_array<T: npyz::AutoSerialize>(
    npz: &mut NpzWriter<&mut Cursor<Vec<u8>>>,
    name: &str,
    shape: &[u64],
    values: Vec<T>,
) -> std::io::Result<()> {
    let mut array = npz.array(name, Default::default())?.default_dtype().shape(shape).begin_nd()?;
    array.extend(values)?;
    array.finish()
}

fn write_pngs(folder: &Path, images: &ImageBatch) -> Result<()> {
    for i in 0..images.n {
        let path = folder.join(format!("img{i:08}.png"));
        lcsc_report::write_image(path, images, i).map_err(report_error)?;
    }
    Ok(())
}
