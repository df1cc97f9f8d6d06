//! `lcsc eval`: Fréchet distances of a weights file.

use crate::args::EvalArgs;
use crate::{Ended, card, session, ui};
use lcsc_search::{LatentSet, sampled_distances};
use lcsc_torch::{Stream, catch, write_atomic};
use miette::IntoDiagnostic;

/// Samples, measures, prints.
pub fn command(args: &EvalArgs) -> miette::Result<Ended> {
    if args.n < 2 {
        miette::bail!("--n {}: expected at least 2: a covariance is estimated from them", args.n);
    }
    let device = session::machine(args.machine.device, args.machine.threads)?;
    let (card, model, weights) = card::open(&args.weights, device)?;
    let sampler = card::sampler(&card, &model, args.sampler.as_deref())?;
    let mut config = card.data.clone();
    if let Some(source) = &args.data {
        config.source.clone_from(source);
    }
    // The images have to be of the network's size, whatever the dataset's own is.
    config.resolution = Some(card.image.resolution);
    let data = session::dataset(&config, device)?;
    let suite = session::suite(&data, card.metric.seed, device)?;
    let scorers = [&suite.primary, &suite.independent, &suite.pixels];
    let latents = LatentSet { seed: args.seed, stream: Stream::ReportLatents, n: args.n, chunk: args.machine.chunk };
    let distances =
        catch("measuring", || sampled_distances(&model.bind(&weights)?, &sampler, &scorers, latents, device))
            .into_diagnostic()?;
    ui::say!("{}: {} images, {} NFE each, against {}", args.weights.display(), args.n, sampler.nfe(), data.name);
    for (scorer, fd) in scorers.iter().zip(&distances) {
        ui::say!("  FD {fd:10.4}  {}", scorer.extractor.convention());
    }
    if let Some(path) = &args.json {
        let names = ["primary", "independent", "pixels"];
        let result = |(i, fd): (usize, &f64)| serde_json::json!({ "metric": names[i], "convention": scorers[i].extractor.convention(), "fd": fd });
        let json = serde_json::json!({
            "weights": args.weights, "data": data.name, "data_hash": data.hash, "n": args.n, "seed": args.seed,
            "nfe": sampler.nfe(), "results": distances.iter().enumerate().map(result).collect::<Vec<_>>(),
        });
        write_atomic(path, format!("{json:#}\n").as_bytes()).into_diagnostic()?;
    }
    Ok(Ended::Done)
}
