//! What a finished search leaves: coefficients, merged model, table, pictures.

use super::material::Material;
use super::{DEFAULT_NAME, Plan};
use crate::doctor;
use crate::merge::{self, Coefficient, Coefficients};
use crate::pictures;
use crate::session::Session;
use crate::ui;
use lcsc_metrics::Suite;
use lcsc_report::{ModelLabel, Summary};
use lcsc_search::{Groups, Label, Outcome, Row};
use lcsc_torch::{Error, Result, Tensor, cpu_threads};
use lcsc_train::{StageRecord, image_batch, report_error};
use lcsc_trajectory::Checkpoint;
use std::path::{Path, PathBuf};

/// Samples that are shown beside the real images nearest to them.
const SHOWN: i64 = 8;

/// Everything that the results are written from.
pub struct Results<'a> {
    pub session: &'a Session<'a>,
    pub plan: &'a Plan,
    pub suite: &'a Suite,
    pub material: &'a Material,
    pub outcome: &'a Outcome,
}

impl Results<'_> {
    /// All of it, and the table on standard output.
    pub fn write(&self, stages: Vec<StageRecord>) -> Result<()> {
        let Self { session, .. } = self;
        self.write_coefficients()?;
        let merged = self.of_run_or_search(session.run.merged(), merge::MERGED);
        self.write_merged(&merged)?;
        let summary = self.summary(stages);
        summary.write(self.of_run_or_search(session.run.summary(), "summary.json")).map_err(report_error)?;
        self.pictures()?;
        ui::say!("{}", lcsc_report::table(&summary));
        summary.outcome().inspect(|outcome| ui::say!("{outcome}"));
        ui::say!("merged model: {}", merged.display());
        Ok(())
    }

    /// The winner's coefficients, in the folder of the search.
    pub fn write_coefficients(&self) -> Result<()> {
        self.coefficients(self.lcsc()?).write(&self.plan.file(self.session, merge::COEFFICIENTS))
    }

    /// The winner as a weights file.
    pub fn write_merged(&self, path: &Path) -> Result<()> {
        let Self { session, plan, material, .. } = self;
        let lcsc = self.lcsc()?;
        let weights = material.weights(session, plan, &lcsc.model)?;
        merge::write(path, &session.card, &material.model, &weights, &self.coefficients(lcsc), Default::default())
    }

    fn lcsc(&self) -> Result<&Row> {
        self.outcome.row(Label::Lcsc).ok_or_else(|| Error::msg("the search has no result"))
    }

    /// A file of the run for the default search; other searches keep theirs to themselves.
    fn of_run_or_search(&self, of_run: PathBuf, file: &str) -> PathBuf {
        if self.plan.name == DEFAULT_NAME { of_run } else { self.plan.file(self.session, file) }
    }

    fn coefficients(&self, row: &Row) -> Coefficients {
        let Self { plan, suite, material, .. } = self;
        let of =
            |c: &Checkpoint, alpha| Coefficient { file: c.file.clone(), nimg: c.nimg, blake3: c.blake3.clone(), alpha };
        let (mut space, mut groups) = (Groups::One, vec!["all".to_string()]);
        let checkpoint = match &row.model {
            lcsc_search::Model::Coefficients(alpha) => {
                if alpha.groups() > 1 {
                    (space, groups) = (lcsc_search::groups_of(&plan.search), material.partition.names().to_vec());
                }
                let column = |k: usize| alpha.rows().iter().map(|row| row[k]).collect();
                material.window.checkpoints().iter().enumerate().map(|(k, c)| of(c, column(k))).collect()
            }
            lcsc_search::Model::Track(name) => {
                material.track_checkpoints.iter().filter(|c| c.track == *name).map(|c| of(c, vec![1.0])).collect()
            }
            lcsc_search::Model::Finetuned => vec![],
        };
        Coefficients {
            search: plan.name.clone(),
            detail: row.detail.clone(),
            extractor: suite.primary.extractor.convention(),
            images: plan.search.report_images,
            fd_heldout: row.fd_heldout,
            nfe: plan.sampler.nfe(),
            space,
            groups,
            sampler: plan.sampler.clone(),
            checkpoint,
        }
    }

    fn summary(&self, stages: Vec<StageRecord>) -> Summary {
        let Self { session, plan, suite, outcome, .. } = self;
        let search = &plan.search;
        let stage = |s: StageRecord| lcsc_report::Stage { name: s.name, nimg: s.nimg, seconds: s.seconds };
        let methods: Vec<&str> = search.method.iter().map(|m| m.name()).collect();
        Summary {
            name: session.config.name.clone(),
            stages: stages.into_iter().map(stage).collect(),
            metric: lcsc_report::Metric {
                extractor: suite.primary.extractor.convention(),
                reference: format!("{}, {} images", session.data.name, session.data.images.size()[0]),
                n_search: search.images,
                n_heldout: search.report_images,
                nfe: plan.sampler.nfe() as u64,
            },
            search: lcsc_report::Search {
                method: methods.join("+"),
                evaluations: outcome.evaluations,
                seconds: outcome.seconds,
            },
            models: outcome.rows.iter().map(reported).collect(),
            machine: Some(lcsc_report::Machine {
                lcsc: env!("CARGO_PKG_VERSION").into(),
                libtorch: doctor::LIBTORCH.into(),
                device: format!("{:?}", session.device),
                cpu: doctor::cpu(),
                threads: cpu_threads(),
            }),
        }
    }

    fn write_grid(&self, of_run: &str, of_search: &str, images: &Tensor, columns: usize) -> Result<()> {
        let path = self.of_run_or_search(self.session.run.samples().join(of_run), of_search);
        lcsc_report::write_grid(path, &image_batch(images)?, columns).map_err(report_error)
    }

    /// The same latents through each row's model, a sheet of the merged one, and the real images nearest to its samples.
    fn pictures(&self) -> Result<()> {
        let Self { session, plan, material, outcome, .. } = self;
        let mut rows = Vec::new();
        for row in &outcome.rows {
            let weights = material.weights(session, plan, &row.model)?;
            let label = model_label(row.label).to_string();
            let images = pictures::sample(session, &material.model, &weights, pictures::COLUMNS)?;
            rows.push((label, image_batch(&images)?));
            if row.label == Label::Lcsc {
                let sheet = pictures::sample(session, &material.model, &weights, pictures::SHEET)?;
                self.write_grid("lcsc.png", "samples.png", &sheet, pictures::COLUMNS as usize)?;
                let shown = images.f_narrow(0, 0, SHOWN)?;
                if let Some(found) = pictures::nearest(&shown, &self.suite.independent, &session.data.images)? {
                    self.write_grid("nearest.png", "nearest.png", &found, found.size()[0] as usize / SHOWN as usize)?;
                }
            }
        }
        let path = self.of_run_or_search(session.run.samples().join("comparison.png"), "comparison.png");
        lcsc_report::write_comparison(path, &rows).map_err(report_error)
    }
}

/// A row as it stands in summaries.
fn reported(row: &Row) -> lcsc_report::Model {
    lcsc_report::Model {
        label: model_label(row.label),
        detail: row.detail.clone(),
        fd_search: row.fd_search,
        fd_heldout: row.fd_heldout,
        fd_heldout_std: row.fd_heldout_std,
        fd_heldout_low: row.fd_heldout_low,
        fd_heldout_high: row.fd_heldout_high,
        fd_independent: row.fd_independent,
        fd_pixel: row.fd_pixel,
        precision: row.precision,
        recall: row.recall,
    }
}

/// What a row is called in tables.
pub fn model_label(label: Label) -> ModelLabel {
    match label {
        Label::Last => ModelLabel::Last,
        Label::BestCheckpoint => ModelLabel::BestCheckpoint,
        Label::Ema => ModelLabel::Ema,
        Label::Lcsc => ModelLabel::Lcsc,
        Label::Finetune => ModelLabel::Finetune,
    }
}
