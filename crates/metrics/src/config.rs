//! How a config names what images are judged by.

use crate::inception::Inception;
use crate::lite::LiteName;
use lcsc_torch::Precision;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt::Formatter;
use std::path::PathBuf;

/// How images are judged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MetricConfig {
    /// Seed of the classifiers: initial weights and training batches.
    pub seed: u64,
    /// What the search sees.
    pub extractor: ExtractorConfig,
    /// What tells whether a gain is one of the images or of that extractor alone: another network. The search never sees it.
    pub independent: ExtractorConfig,
}

/// The features that images are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ExtractorConfig {
    /// By the kind of images, see [`MetricConfig::judges`].
    #[default]
    Auto,
    /// A small classifier that is trained on the real images and their labels; random convolutions where they have none.
    Classifier,
    /// EfficientNet-Lite of published weights, for images brought to `side`×`side` pixels.
    Lite {
        /// Which network.
        name: LiteName,
        /// Height and width, in pixels.
        side: i64,
        /// What it computes in.
        precision: Precision,
    },
    /// The network of published FIDs.
    Inception {
        /// Its file, or `auto`.
        weights: PathBuf,
        /// What it computes in.
        precision: Precision,
    },
    /// A TorchScript module.
    TorchScript {
        /// Its file.
        file: PathBuf,
        /// Which of its results are the features.
        output: Option<String>,
    },
}

/// An extractor without settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Name {
    /// To search by, `lite0` for RGB images of 16 pixels a side and more, else `classifier`. As the independent one, `lite2` for
    /// such images (`lite0` where `lite2` is searched), else a second classifier.
    Auto,
    /// A small classifier that is trained on the real images and their labels; random convolutions where they have none.
    Classifier,
    /// EfficientNet-Lite0, trained on ImageNet, for images brought to 112×112: 1280 features.
    Lite0,
    /// EfficientNet-Lite2, the same for 128×128.
    Lite2,
    /// The network of published FIDs, pytorch-fid's port: `{ inception = "auto" }`.
    Inception,
}

/// An extractor with settings. One of `inception`, `lite0`, `lite2` and `torchscript` says which.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Table {
    /// The network of published FIDs, pytorch-fid's port: its weights file, or `auto` for that of `LCSC_INCEPTION` or the
    /// one that `lcsc data fetch inception` brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    inception: Option<PathBuf>,
    /// EfficientNet-Lite0 for images brought to so many pixels a side; 224 is what it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 32, max = 1024))]
    lite0: Option<i64>,
    /// EfficientNet-Lite2, likewise; 260 is what it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 32, max = 1024))]
    lite2: Option<i64>,
    /// A TorchScript module of RGB pixels f32 `[B,3,H,W]` in 0…255 that gives features `[B,D]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    torchscript: Option<PathBuf>,
    /// Of a TorchScript module: the boolean argument of its `forward` that asks for features, else their key in a dict or
    /// their index in a tuple.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// What a network of published weights computes in: `f32`, or faster on GPUs `bf16` or `f16`, whose distances are not
    /// comparable with published ones.
    #[serde(skip_serializing_if = "is_f32")]
    #[schemars(extend("default" = "f32"))]
    precision: Precision,
}

fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

/// Sides that Lite networks take: five times they are halved.
const SIDES: std::ops::RangeInclusive<i64> = 32..=1024;

impl From<Name> for ExtractorConfig {
    fn from(name: Name) -> Self {
        match name {
            Name::Auto => Self::Auto,
            Name::Classifier => Self::Classifier,
            Name::Lite0 => Self::lite(LiteName::Lite0),
            Name::Lite2 => Self::lite(LiteName::Lite2),
            Name::Inception => Self::inception(),
        }
    }
}

impl TryFrom<Table> for ExtractorConfig {
    type Error = &'static str;

    fn try_from(table: Table) -> Result<Self, &'static str> {
        let Table { inception, lite0, lite2, torchscript, output, precision } = table;
        if output.is_some() && torchscript.is_none() {
            return Err("`output` belongs to `torchscript`");
        }
        if precision == Precision::Tf32 {
            return Err("expected precision `f32`, `bf16` or `f16`");
        }
        let lite = |name, side| match SIDES.contains(&side) {
            true => Ok(Self::Lite { name, side, precision }),
            false => Err("expected 32 to 1024 pixels a side"),
        };
        match (inception, lite0, lite2, torchscript) {
            (Some(weights), None, None, None) => Ok(Self::Inception { weights, precision }),
            (None, Some(side), None, None) => lite(LiteName::Lite0, side),
            (None, None, Some(side), None) => lite(LiteName::Lite2, side),
            (None, None, None, _) if !is_f32(&precision) => {
                Err("`precision` belongs to `inception`, `lite0` or `lite2`")
            }
            (None, None, None, Some(file)) => Ok(Self::TorchScript { file, output }),
            (None, None, None, None) => Ok(Self::Auto),
            _ => Err("expected one of `inception`, `lite0`, `lite2` and `torchscript`"),
        }
    }
}

impl Serialize for ExtractorConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = Table::default();
        match self.clone() {
            Self::Auto => Name::Auto.serialize(serializer),
            Self::Classifier => Name::Classifier.serialize(serializer),
            Self::Lite { name: LiteName::Lite0, side, precision } => {
                Table { lite0: Some(side), precision, ..table }.serialize(serializer)
            }
            Self::Lite { name: LiteName::Lite2, side, precision } => {
                Table { lite2: Some(side), precision, ..table }.serialize(serializer)
            }
            Self::Inception { weights, precision } => {
                Table { inception: Some(weights), precision, ..table }.serialize(serializer)
            }
            Self::TorchScript { file, output } => {
                Table { torchscript: Some(file), output, ..table }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for ExtractorConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = ExtractorConfig;

            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("the name of an extractor, or a table")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ExtractorConfig, E> {
                Name::deserialize(serde::de::value::StrDeserializer::new(name)).map(ExtractorConfig::from)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ExtractorConfig, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                ExtractorConfig::try_from(table).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for ExtractorConfig {
    fn schema_name() -> Cow<'static, str> {
        "ExtractorConfig".into()
    }

    /// The names, and the table.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names = Name::json_schema(generator);
        let names = names.get("oneOf").and_then(|names| names.as_array()).cloned().unwrap_or_default();
        let ways: Vec<_> = names.into_iter().chain([Table::json_schema(generator).to_value()]).collect();
        json_schema!({ "description": "The features that images are judged by.", "oneOf": ways })
    }
}

impl ExtractorConfig {
    /// A Lite network at its usual size.
    pub fn lite(name: LiteName) -> Self {
        Self::Lite { name, side: name.side(), precision: Precision::F32 }
    }

    /// FID's network, wherever it is.
    pub fn inception() -> Self {
        Self::Inception { weights: "auto".into(), precision: Precision::F32 }
    }

    /// D, the number of features, where it is known before anything is opened.
    pub fn features(&self) -> Option<u64> {
        match self {
            Self::Auto | Self::TorchScript { .. } => None,
            Self::Classifier => Some(crate::featurenet::FEATURES as u64),
            Self::Lite { .. } => Some(crate::lite::FEATURES as u64),
            Self::Inception { .. } => Some(crate::inception::FEATURES as u64),
        }
    }

    /// Bytes of activations that a graph through it keeps of an image; nothing is known of a module, and little kept by a classifier.
    pub fn activation_bytes(&self) -> u64 {
        match self {
            Self::Auto | Self::Classifier | Self::TorchScript { .. } => 0,
            Self::Lite { name, side, precision } => name.activation_bytes(*side, *precision),
            Self::Inception { precision, .. } => Inception::activation_bytes(*precision),
        }
    }

    /// What a gradient through it computes in.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Lite { precision, .. } | Self::Inception { precision, .. } => *precision,
            Self::Auto | Self::Classifier | Self::TorchScript { .. } => Precision::F32,
        }
    }
}

/// The sides from which on RGB images are natural ones, for which networks trained on ImageNet are the better judges.
const NATURAL: i64 = 16;

impl MetricConfig {
    /// What images `[C,H,W]` are searched by, and the independent judge, neither of them `auto`.
    pub fn judges(&self, [channels, height, width]: [i64; 3]) -> [ExtractorConfig; 2] {
        use ExtractorConfig::{Auto, Classifier, Lite};
        let is_natural = channels == 3 && height.min(width) >= NATURAL;
        let primary = match &self.extractor {
            Auto if is_natural => ExtractorConfig::lite(LiteName::Lite0),
            Auto => Classifier,
            named => named.clone(),
        };
        let independent = match (&self.independent, &primary) {
            (Auto, Lite { name: LiteName::Lite2, .. }) if is_natural => ExtractorConfig::lite(LiteName::Lite0),
            (Auto, Classifier) => Classifier,
            (Auto, _) if is_natural => ExtractorConfig::lite(LiteName::Lite2),
            (Auto, _) => Classifier,
            (named, _) => named.clone(),
        };
        [primary, independent]
    }

    /// What is wrong with it for such images, if anything.
    pub fn problem(&self, chw: [i64; 3]) -> Option<&'static str> {
        let [primary, independent] = self.judges(chw);
        // Two classifiers are two networks.
        (primary == independent && primary != ExtractorConfig::Classifier)
            .then_some("the independent judge is what the search sees: expected another network")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<ExtractorConfig, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn extractors_are_names_or_tables_and_come_back() {
        for (value, expected) in [
            (json!("auto"), ExtractorConfig::Auto),
            (json!({}), ExtractorConfig::Auto),
            (json!("classifier"), ExtractorConfig::Classifier),
            (json!("lite0"), ExtractorConfig::Lite { name: LiteName::Lite0, side: 112, precision: Precision::F32 }),
            (
                json!({ "lite2": 260, "precision": "bf16" }),
                ExtractorConfig::Lite { name: LiteName::Lite2, side: 260, precision: Precision::Bf16 },
            ),
            (json!("inception"), ExtractorConfig::inception()),
            (json!({ "inception": "auto" }), ExtractorConfig::inception()),
            (
                json!({ "torchscript": "a.pt", "output": "f" }),
                ExtractorConfig::TorchScript { file: "a.pt".into(), output: Some("f".into()) },
            ),
        ] {
            let config = read(value.clone()).unwrap();
            assert_eq!(config, expected, "{value}");
            assert_eq!(read(serde_json::to_value(&config).unwrap()).unwrap(), expected, "{value}");
        }
        for (value, part) in [
            (json!("lite1"), "unknown variant `lite1`, expected one of `auto`, `classifier`, `lite0`"),
            (json!({ "output": "f" }), "belongs to `torchscript`"),
            (json!({ "inception": "a", "lite0": 112 }), "expected one of `inception`, `lite0`"),
            (json!({ "precision": "bf16" }), "`precision` belongs to `inception`"),
            (json!({ "inception": "a", "precision": "tf32" }), "expected precision `f32`"),
            (json!({ "lite0": 31 }), "32 to 1024 pixels"),
            (json!({ "lite": 31 }), "unknown field `lite`"),
            (json!(3), "expected the name of an extractor, or a table"),
        ] {
            let text = read(value.clone()).unwrap_err();
            assert!(text.contains(part), "{value}: {text}");
        }
    }

    #[test]
    fn natural_images_are_judged_by_networks_of_natural_images() {
        let [lite0, lite2] = [LiteName::Lite0, LiteName::Lite2].map(ExtractorConfig::lite);
        let classifier = || ExtractorConfig::Classifier;
        let judges = |extractor, chw| MetricConfig { extractor, ..MetricConfig::default() }.judges(chw);
        let (auto, natural) = (ExtractorConfig::Auto, [3, 16, 16]);
        assert_eq!(judges(auto.clone(), natural), [lite0.clone(), lite2.clone()]);
        assert_eq!(judges(lite2.clone(), natural), [lite2.clone(), lite0]);
        assert_eq!(judges(ExtractorConfig::inception(), natural), [ExtractorConfig::inception(), lite2]);
        assert_eq!(judges(classifier(), natural), [classifier(), classifier()]);
        for other in [[1, 28, 28], [3, 8, 8], [3, 64, 8]] {
            assert_eq!(judges(auto.clone(), other), [classifier(), classifier()]);
            assert_eq!(judges(ExtractorConfig::inception(), other)[1], classifier());
        }
        let same = |extractor: ExtractorConfig| {
            MetricConfig { independent: extractor.clone(), extractor, seed: 0 }.problem(natural).is_some()
        };
        assert!(same(ExtractorConfig::inception()) && !same(classifier()) && !same(auto));
    }
}
