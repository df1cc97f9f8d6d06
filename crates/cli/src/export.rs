//! `lcsc export`: weights for other programs.

use crate::args::{ExportArgs, Naming};
use crate::card::Card;
use crate::{Ended, card, naming, ui};
use lcsc_diffusion::{PreconditioningConfig, TimeInput};
use lcsc_torch::{Device, Result, StorageDtype, catch, pack_weights, serialize, write_atomic};
use lcsc_trajectory::state_dict;
use lcsc_unet::AttentionOrder;
use miette::IntoDiagnostic;

/// What a file of tensors is.
#[derive(Clone, Copy)]
enum Format {
    StateDict,
    Safetensors,
}

/// Reads, renames, writes.
pub fn command(args: &ExportArgs) -> miette::Result<Ended> {
    let format = match args.out.extension().and_then(|e| e.to_str()) {
        Some("pt" | "pth") => Format::StateDict,
        Some("safetensors") => Format::Safetensors,
        Some(_) | None => miette::bail!("{}: expected a name ending in .pt, .pth or .safetensors", args.out.display()),
    };
    ui::refuse_existing(&args.out)?;
    let (card, model, weights) = card::open(&args.weights, Device::Cpu)?;
    let usage = match args.naming {
        Naming::Edm => edm_usage(&card),
        Naming::Openai => openai_usage(&card, args.attention_order),
    };
    catch("exporting", || -> Result<()> {
        let ours = pack_weights(&model.layout, &weights, StorageDtype::F32)?;
        let tensors = match args.naming {
            Naming::Edm => naming::to_edm(ours, &card, &model)?,
            Naming::Openai => naming::to_openai(&ours, &card.network, card.image, args.attention_order)?,
        };
        let bytes = match format {
            Format::StateDict => state_dict(&tensors, &usage)?,
            Format::Safetensors => serialize(&tensors, ("usage", &usage))?,
        };
        write_atomic(&args.out, &bytes)
    })
    .into_diagnostic()?;
    ui::say!("{}\n{usage}", args.out.display());
    Ok(Ended::Done)
}

/// How the tensors are used where they go.
fn edm_usage(card: &Card) -> String {
    let class = match &card.preconditioning {
        PreconditioningConfig::Edm(_) => "EDMPrecond",
        PreconditioningConfig::Vp(_) => "VPPrecond",
        PreconditioningConfig::Ve(_) => "VEPrecond",
        PreconditioningConfig::Iddpm(_) => "iDDPMPrecond",
        PreconditioningConfig::Ddpm(_) => "a module of yours (EDM's code has no linear DDPM schedule)",
    };
    format!(
        "net.load_state_dict(torch.load(PATH), strict=True), net being {class} around this architecture; D(x; sigma) = \
         net(x, sigma, class_labels){}",
        if tells_openai_time(card) {
            ", with 250·ln(sigma) in place of ln(sigma)/4 as the network's time"
        } else {
            ""
        }
    )
}

fn openai_usage(card: &Card, order: AttentionOrder) -> String {
    let code = match order {
        AttentionOrder::Flash => "consistency_models",
        AttentionOrder::New => "guided-diffusion with use_new_attention_order=True",
        AttentionOrder::Legacy => "improved-diffusion or guided-diffusion with use_new_attention_order=False",
    };
    let time = match &card.preconditioning {
        PreconditioningConfig::Edm(_) if tells_openai_time(card) => "250·ln(sigma), as KarrasDenoiser gives it",
        PreconditioningConfig::Edm(_) => "ln(sigma)/4, where KarrasDenoiser gives 1000 times that: divide",
        PreconditioningConfig::Vp(_) => "(M-1)·t",
        PreconditioningConfig::Ve(_) => "ln(sigma/2)",
        PreconditioningConfig::Ddpm(_) | PreconditioningConfig::Iddpm(_) => "the time step",
    };
    format!(
        "model.load_state_dict(torch.load(PATH), strict=True), model a UNetModel of OpenAI's {code}; its time input is {time}"
    )
}

fn tells_openai_time(card: &Card) -> bool {
    matches!(&card.preconditioning, PreconditioningConfig::Edm(c) if c.time_input == TimeInput::OpenAi)
}
