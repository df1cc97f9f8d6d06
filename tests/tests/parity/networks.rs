//! Networks as the reference codes configure them.

use crate::fixture::{Fixture, Outcome, device, own_rule, rule};
use lcsc_diffusion::{
    Conditioning, EdmPreconditioning, IddpmPreconditioning, Model, PreconditioningConfig, Scalings, TimeInput,
    VePreconditioning, VpPreconditioning,
};
use lcsc_torch::{Device, Precision, Tensor, TensorSpec, Weights};
use lcsc_unet::{
    AttentionOrder, Decoder, DhariwalUNetConfig, Embedding, Encoder, ImageShape, Inputs, Network, NetworkConfig,
    Resolution, SongUNetConfig, openai_counterparts, openai_heads,
};
use serde::Deserialize;
use serde_json::Value;

/// The arguments of one of EDM's preconditioners with its network, as a fixture writes them; absent ones are EDM's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
struct EdmNetwork {
    img_resolution: i64,
    img_channels: i64,
    #[serde(default)]
    label_dim: i64,
    model_type: Option<String>,
    #[serde(default)]
    #[allow(dead_code)]
    use_fp16: bool,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    sigma_data: Option<f64>,
    beta_d: Option<f64>,
    beta_min: Option<f64>,
    epsilon_t: Option<f64>,
    C_1: Option<f64>,
    C_2: Option<f64>,
    M: Option<u64>,
    #[serde(default)]
    augment_dim: i64,
    model_channels: Option<i64>,
    channel_mult: Option<Vec<i64>>,
    channel_mult_emb: Option<i64>,
    num_blocks: Option<i64>,
    attn_resolutions: Option<Vec<i64>>,
    dropout: Option<f64>,
    label_dropout: Option<f64>,
    embedding_type: Option<Embedding>,
    channel_mult_noise: Option<i64>,
    encoder_type: Option<Encoder>,
    decoder_type: Option<Decoder>,
    resample_filter: Option<Vec<f64>>,
}

impl EdmNetwork {
    fn image(&self) -> ImageShape {
        ImageShape { channels: self.img_channels, resolution: self.img_resolution, label_dim: self.label_dim }
    }

    fn network(&self, preconditioner: &str) -> NetworkConfig {
        let default_type = if preconditioner == "iDDPMPrecond" { "DhariwalUNet" } else { "SongUNet" };
        if self.model_type.as_deref().unwrap_or(default_type) == "DhariwalUNet" {
            return NetworkConfig::Adm(self.adm());
        }
        NetworkConfig::Song(SongUNetConfig {
            model_channels: self.model_channels.unwrap_or(128),
            channel_mult: self.channel_mult.clone().unwrap_or_else(|| vec![1, 2, 2, 2]),
            channel_mult_emb: self.channel_mult_emb.unwrap_or(4),
            num_blocks: self.num_blocks.unwrap_or(4),
            attn_resolutions: self.attn_resolutions.clone().unwrap_or_else(|| vec![16]),
            dropout: self.dropout.unwrap_or(0.1),
            label_dropout: self.label_dropout.unwrap_or(0.0),
            embedding_type: self.embedding_type.unwrap_or(Embedding::Positional),
            channel_mult_noise: self.channel_mult_noise.unwrap_or(1),
            encoder_type: self.encoder_type.unwrap_or(Encoder::Standard),
            decoder_type: self.decoder_type.unwrap_or(Decoder::Standard),
            resample_filter: self.resample_filter.clone().unwrap_or_else(|| vec![1.0, 1.0]),
            augment_dim: self.augment_dim,
            ..SongUNetConfig::ddpmpp_cifar10()
        })
    }

    fn adm(&self) -> DhariwalUNetConfig {
        let d = DhariwalUNetConfig::adm_imagenet64();
        DhariwalUNetConfig {
            model_channels: self.model_channels.unwrap_or(d.model_channels),
            channel_mult: self.channel_mult.clone().unwrap_or(d.channel_mult),
            channel_mult_emb: self.channel_mult_emb.unwrap_or(d.channel_mult_emb),
            num_blocks: self.num_blocks.unwrap_or(d.num_blocks),
            attn_resolutions: self.attn_resolutions.clone().unwrap_or(d.attn_resolutions),
            dropout: self.dropout.unwrap_or(d.dropout),
            label_dropout: self.label_dropout.unwrap_or(0.0),
            augment_dim: self.augment_dim,
            ..DhariwalUNetConfig::adm_imagenet64()
        }
    }

    fn preconditioning(&self, preconditioner: &str) -> Outcome<PreconditioningConfig> {
        let sigma_data = self.sigma_data.unwrap_or(0.5);
        let (vp, ve, iddpm) =
            (VpPreconditioning::default(), VePreconditioning::default(), IddpmPreconditioning::default());
        Ok(match preconditioner {
            "EDMPrecond" => PreconditioningConfig::Edm(EdmPreconditioning { sigma_data, time_input: TimeInput::Edm }),
            "VPPrecond" => PreconditioningConfig::Vp(VpPreconditioning {
                beta_d: self.beta_d.unwrap_or(vp.beta_d),
                beta_min: self.beta_min.unwrap_or(vp.beta_min),
                m: self.M.unwrap_or(vp.m),
                epsilon_t: self.epsilon_t.unwrap_or(vp.epsilon_t),
            }),
            "VEPrecond" => PreconditioningConfig::Ve(VePreconditioning {
                sigma_min: self.sigma_min.unwrap_or(ve.sigma_min),
                sigma_max: self.sigma_max.unwrap_or(ve.sigma_max),
            }),
            "iDDPMPrecond" => PreconditioningConfig::Iddpm(IddpmPreconditioning {
                c_1: self.C_1.unwrap_or(iddpm.c_1),
                c_2: self.C_2.unwrap_or(iddpm.c_2),
                m: self.M.unwrap_or(1000),
                learn_sigma: true,
            }),
            other => return Err(format!("unknown preconditioner {other}").into()),
        })
    }
}

/// The arguments of OpenAI's `UNetModel`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenAiNetwork {
    image_size: i64,
    in_channels: i64,
    model_channels: i64,
    out_channels: i64,
    num_res_blocks: i64,
    /// Factors of downsampling at which attention takes place.
    attention_resolutions: Vec<i64>,
    #[serde(default)]
    dropout: f64,
    channel_mult: Vec<i64>,
    num_classes: Option<i64>,
    #[serde(default = "one")]
    num_heads: i64,
    #[serde(default = "minus_one")]
    num_head_channels: i64,
    #[serde(default)]
    use_scale_shift_norm: bool,
    #[serde(default)]
    resblock_updown: bool,
}

fn one() -> i64 {
    1
}

fn minus_one() -> i64 {
    -1
}

impl OpenAiNetwork {
    fn image(&self) -> ImageShape {
        let label_dim = self.num_classes.unwrap_or(0);
        ImageShape { channels: self.in_channels, resolution: self.image_size, label_dim }
    }

    fn adm(&self) -> DhariwalUNetConfig {
        DhariwalUNetConfig {
            model_channels: self.model_channels,
            channel_mult: self.channel_mult.clone(),
            num_blocks: self.num_res_blocks,
            attn_resolutions: self.attention_resolutions.iter().map(|ds| self.image_size / ds).collect(),
            heads: openai_heads(self.num_heads, self.num_head_channels),
            dropout: self.dropout,
            resample: if self.resblock_updown { Resolution::Blocks } else { Resolution::Convolutions },
            adaptive_scale: self.use_scale_shift_norm,
            min_channels_per_group: 1,
            ..DhariwalUNetConfig::adm_imagenet64()
        }
    }
}

/// A network as its file describes it.
pub struct Described {
    pub model: Model,
    network: NetworkConfig,
    gain: f64,
    is_openai: bool,
}

impl Described {
    pub fn of(f: &Fixture) -> Outcome<Self> {
        let gain = f.json["weights"]["gain"].as_f64().ok_or("no gain")?;
        let config: Value = f.json["config"].clone();
        let is_openai = f.json["naming"] == "openai";
        let (network, image, preconditioning) = if is_openai {
            let config: OpenAiNetwork = serde_json::from_value(config)?;
            if config.out_channels != config.in_channels {
                return Err("a learnt variance has no denoised image here".into());
            }
            let preconditioning = EdmPreconditioning { sigma_data: 0.5, time_input: TimeInput::OpenAi };
            let preconditioning = PreconditioningConfig::Edm(preconditioning);
            (NetworkConfig::Adm(config.adm()), config.image(), preconditioning)
        } else {
            let config: EdmNetwork = serde_json::from_value(config)?;
            let source = f.json["source"].as_str().unwrap_or_default();
            let preconditioner = source.rsplit(' ').next().unwrap_or_default();
            (config.network(preconditioner), config.image(), config.preconditioning(preconditioner)?)
        };
        let model = Model::new(&network, &preconditioning, image, Precision::F32);
        if let Some(expected) = f.json["params"].as_i64().filter(|&n| n != model.layout.numel()) {
            return Err(format!("the network has {} parameters, expected {expected}", model.layout.numel()).into());
        }
        Ok(Self { model, network, gain, is_openai })
    }

    /// The weights of the rule over names that begin with `prefix`.
    pub fn weights(&self, prefix: &str) -> Outcome<Weights> {
        let layout = &self.model.layout;
        let values: Vec<Tensor> = match &self.network {
            NetworkConfig::Adm(config) if self.is_openai => self.openai_values(config, prefix)?,
            NetworkConfig::Adm(_) | NetworkConfig::Song(_) => {
                layout.params().iter().map(|spec| Tensor::from_slice(&own_rule(spec, self.gain))).collect()
            }
        };
        let initial = layout.init(0, Device::Cpu)?;
        let buffer = |(spec, own): (&TensorSpec, Tensor)| {
            let own = if spec.name.ends_with("freqs") { Tensor::from_slice(&own_rule(spec, self.gain)) } else { own };
            own.to(device())
        };
        let buffers = layout.buffers().iter().zip(initial.buffers).map(buffer).collect();
        Ok(Weights { theta: Tensor::f_cat(&values, 0)?.to(device()), buffers })
    }

    fn openai_values(&self, config: &DhariwalUNetConfig, prefix: &str) -> Outcome<Vec<Tensor>> {
        let table = openai_counterparts(config, self.model.image, AttentionOrder::default());
        let value = |spec: &TensorSpec| -> Outcome<Tensor> {
            let counterpart = table.iter().find(|c| c.ours == spec.name).ok_or("a tensor without counterpart")?;
            let shape = counterpart.their_shape(&spec.shape);
            let theirs = rule(&format!("{prefix}{}", counterpart.theirs), &shape, self.gain);
            let ours = counterpart.to_ours(&Tensor::from_slice(&theirs).view(shape.as_slice()), &spec.shape)?;
            Ok(ours.flatten(0, -1))
        };
        self.model.layout.params().iter().map(value).collect()
    }

    /// The bare network's output, told `c_noise` f32 [B].
    fn raw(&self, x: &Tensor, c_noise: &Tensor, labels: Option<&Tensor>) -> Outcome<Tensor> {
        let (net, layout) = Network::new(&self.network, self.model.image, self.model.image.channels);
        let weights = self.weights("")?;
        let inputs = Inputs { x, c_noise, labels, augment_labels: None, train: false };
        Ok(net.forward(&layout.views(&weights.theta, &weights.buffers)?, &inputs))
    }
}

pub fn network(f: &Fixture) -> Outcome<f64> {
    let described = Described::of(f)?;
    let weights = described.weights("")?;
    let net = described.model.bind(&weights)?;
    let (x, sigma) = (f.tensor("in.x")?, f.tensor("in.sigma")?);
    let conditioning = f.conditioning(described.model.image.label_dim)?;
    // OpenAI's denoiser is that of consistency models.
    let scalings = if described.is_openai { Scalings::Boundary { sigma_min: 0.002 } } else { Scalings::Plain };
    let denoised = |conditioning: &Conditioning| net.denoise(&x, &sigma, scalings, conditioning, false);
    let mut worst = f.compare(&denoised(&conditioning), "out.denoised")?;
    if f.optional("out.raw")?.is_some() {
        worst = worst.max(f.compare(&described.raw(&x, &sigma, conditioning.labels.as_ref())?, "out.raw")?);
    }
    if f.optional("out.denoised_no_label")?.is_some() {
        let without_label = Conditioning { labels: None, ..conditioning };
        worst = worst.max(f.compare(&denoised(&without_label), "out.denoised_no_label")?);
    }
    Ok(worst)
}
