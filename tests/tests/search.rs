//! Searches of finished runs and of runs in training: studies, budgets, several workers, what is combined, and what is
//! refused.

use lcsc_tests::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Settings that make the tiny run smaller still: six checkpoints, three network evaluations an image.
const SMALL: [&str; 12] = [
    "stage.0.nimg=384",
    "stage.0.trajectory.every_nimg=64",
    "sampler.heun.steps=2",
    "search.images=32",
    "search.selection_images=32",
    "search.report_images=32",
    "search.report_seeds=2",
    "search.finalists=1",
    "search.bootstrap=4",
    "search.gradient.images=32",
    "search.finetune.images=32",
    "search.budget.evaluations=5",
];

/// `lcsc run` of the small config in `run`, with further settings.
fn run<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", TINY, "--out", "run"];
    SMALL.iter().chain(sets).for_each(|set| args.extend(["--set", set]));
    args
}

/// A folder with a trained `run` that was not searched.
fn trained(sets: &[&str]) -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let said = succeed(temp.path(), &run(&[&["search.when=off"][..], sets].concat()));
    assert_eq!(said, "trained: run\n");
    let run = temp.path().join("run");
    assert!(files(&run.join("search")).is_empty() && files(&run.join("samples")).is_empty());
    assert!(!run.join("merged.safetensors").exists() && !run.join("summary.json").exists());
    temp
}

/// The scores of a search.
fn evaluations(search: &Path) -> Vec<Value> {
    let mut all = json_lines(&search.join("evaluations.jsonl"));
    all.retain(|line| line["record"] == "evaluation");
    all
}

fn header(search: &Path) -> Value {
    json_lines(&search.join("evaluations.jsonl")).remove(0)
}

/// Scores of a method's own candidates.
fn of_method<'a>(scores: &'a [Value], method: &str) -> Vec<&'a Value> {
    scores.iter().filter(|e| e["phase"] == json!({ "search": method })).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value} is no finite number"))
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} is not {b}");
}

/// A distance as tables show it.
fn figure(value: &Value, key: &str) -> String {
    format!("{:.3}", number(value, key))
}

fn coefficients(search: &Path) -> Value {
    toml::from_str(&std::fs::read_to_string(search.join("coefficients.toml")).unwrap()).unwrap()
}

/// α [K][G] of a coefficients file, each group's sum checked.
fn alphas(coefficients: &Value) -> Vec<Vec<f64>> {
    let terms = coefficients["checkpoint"].as_array().unwrap();
    let alphas: Vec<Vec<f64>> = terms.iter().map(|t| serde_json::from_value(t["alpha"].clone()).unwrap()).collect();
    for g in 0..coefficients["groups"].as_array().unwrap().len() {
        assert!((alphas.iter().map(|row| row[g]).sum::<f64>() - 1.0).abs() < 1e-9, "{alphas:?}");
    }
    alphas
}

/// The same command again computes nothing, changes nothing, and says the same.
fn assert_done(folder: &Path, args: &[&str], said: &str) {
    let before = results(folder);
    let again = lcsc_in(folder, args);
    assert_eq!((again.status, again.stdout.as_str()), (Some(0), said), "{}", again.stderr);
    assert!(results(folder) == before, "a finished search changed the folder");
}

/// A row of the comparison says what the log of its search does.
fn assert_row_is_of_its_log(row: &Value, search: &Path) {
    let method = row["method"].as_str().unwrap();
    let scores = evaluations(search);
    let own = of_method(&scores, method);
    assert_eq!(own.len() as u64, row["evaluations"]);
    assert_close(own.iter().map(|e| number(e, "seconds")).sum(), number(row, "seconds"));
    // The winner of its family on the selection latents; what a search of coefficients began with is of the family.
    let is_of_family = |e: &Value| match method {
        "ema-grid" => e["origin"].get("checkpoint").is_none(),
        "finetune" => e["model"] == "finetuned",
        _ => true,
    };
    let finalists = scores.iter().filter(|e| e["phase"] == "selection" && is_of_family(e));
    let winner = finalists.min_by(|a, b| number(a, "fd").total_cmp(&number(b, "fd"))).unwrap();
    let of_winner = |phase: Value| scores.iter().find(|e| e["phase"] == phase && e["id"] == winner["id"]);
    let on_search = [json!("finalist"), json!("baseline"), json!({ "search": method })];
    let on_search = on_search.into_iter().find_map(of_winner).unwrap();
    assert_close(number(row, "fd_search"), number(on_search, "fd"));
    let reported = [0, 1].map(|seed| of_winner(json!({ "report": seed })).unwrap());
    for (key, logged) in [("fd_heldout", "fd"), ("fd_independent", "fd_independent"), ("fd_pixel", "fd_pixel")] {
        assert_close(number(row, key), reported.iter().map(|e| number(e, logged)).sum::<f64>() / 2.0);
    }
    let [low, fd, high] = ["fd_heldout_low", "fd_heldout", "fd_heldout_high"].map(|key| number(row, key));
    assert!(low < fd && fd < high && low > 0.0 && number(row, "seconds") >= 0.0, "{row}");
}

#[test]
fn methods_are_compared_at_equal_budget() {
    let temp = trained(&[]);
    let folder = temp.path();
    let methods = "ema-grid,evolution,one-plus-one,cma-es,gradient:one,gradient,finetune";
    let args = ["search", "run", "--compare", methods, "--json", "table.json"];
    let said = succeed(folder, &args);
    let table = json(&folder.join("table.json"));
    let compare = folder.join("run/search/compare");
    assert_eq!(json(&compare.join("table.json")), table);
    let rows = table.as_array().unwrap();
    let expected = [
        ("ema-grid", "ema-grid", json!(1), 0),
        ("evolution", "evolution", json!(1), 5),
        ("one-plus-one", "one-plus-one", json!(1), 5),
        ("cma-es", "cma-es", json!(1), 5),
        ("gradient", "gradient-one", json!(1), 5),
        ("gradient", "gradient", json!(6), 5),
        ("finetune", "finetune", Value::Null, 5),
    ];
    let lines: Vec<Vec<&str>> = said.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), lines.len(), lines[0][0]), (7, 8, "last"));
    let fds = ["fd_search", "fd_heldout", "fd_heldout_low", "fd_heldout_high", "fd_independent", "fd_pixel"];
    let baselines = |search: &Path| {
        let of = |e: Value| (e["phase"] == "baseline").then(|| (e["id"].clone(), e["fd"].clone()));
        evaluations(search).into_iter().filter_map(of).collect::<Vec<_>>()
    };
    for ((row, line), (method, search, groups, evaluations)) in rows.iter().zip(&lines[1..]).zip(expected) {
        assert_eq!((&row["method"], &row["groups"]), (&json!(method), &groups));
        assert_eq!(row["evaluations"], evaluations);
        let search = compare.join(search);
        assert_row_is_of_its_log(row, &search);
        let scores = self::evaluations(&search);
        for e in of_method(&scores, method).iter().filter(|_| method == "gradient") {
            let shape = |rows: &Value| rows.as_array().unwrap().iter().map(|r| r.as_array().unwrap().len()).collect();
            let expected = vec![6; groups.as_u64().unwrap() as usize];
            let found: [Vec<usize>; 2] = [&e["model"]["coefficients"], &e["gradient"]].map(shape);
            assert_eq!(found, [expected.clone(), expected]);
        }
        assert_eq!(baselines(&search), baselines(&compare.join("ema-grid")));
        let mut cells = vec![method.to_string()];
        cells.extend(groups.as_u64().map(|g| g.to_string()));
        cells.extend(fds.map(|key| figure(row, key)));
        cells.push(format!("{:.2}/{:.2}", number(row, "precision"), number(row, "recall")));
        cells.extend([row["evaluations"].to_string(), format!("{:.1}", number(row, "seconds"))]);
        assert_eq!(*line, cells, "{said}");
    }
    assert_done(folder, &args, &said);

    // The run has no merged model of its own yet, and another search does not meddle.
    assert!(!folder.join("run/merged.safetensors").exists());
    a_budget_in_seconds_is_the_only_limit(folder);
}

fn a_budget_in_seconds_is_the_only_limit(folder: &Path) {
    let args = ["search", "run", "--compare", "evolution,gradient", "--seconds", "0.5", "--name", "timed"];
    let said = succeed(folder, &args);
    for method in ["evolution", "gradient"] {
        let search = folder.join("run/search/timed").join(method);
        let budget = json!({ "evaluations": null, "seconds": 0.5, "images": null, "patience": null });
        assert_eq!(header(&search)["config"]["budget"], budget);
        let scores = evaluations(&search);
        let seconds: Vec<f64> = of_method(&scores, method).iter().map(|e| number(e, "seconds")).collect();
        let before_last: f64 = seconds[..seconds.len() - 1].iter().sum();
        assert!(before_last < 0.5 && before_last + seconds[seconds.len() - 1] >= 0.5, "{seconds:?}");
    }
    assert_done(folder, &args, &said);
    let message = refuse(folder, &["search", "run", "--name", "never", "--seconds", "0"]);
    assert!(message.contains("--seconds 0: expected a positive number"), "{message}");
    assert!(!folder.join("run/search/never").exists());
}

#[test]
fn each_number_of_evaluations_has_coefficients_of_its_own() {
    let temp = trained(&[]);
    let folder = temp.path();
    let args = ["search", "run", "--nfe", "1,3", "--json", "table.json"];
    let said = succeed(folder, &args);
    let table = json(&folder.join("table.json"));
    let lines: Vec<Vec<&str>> = said.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!((table.as_array().unwrap().len(), lines.len()), (2, 2));
    for (i, nfe) in [1, 3].into_iter().enumerate() {
        let (row, search) = (&table[i], folder.join(format!("run/search/nfe/nfe-{nfe}")));
        assert_eq!((&row["nfe"], &row["evaluations"]), (&json!(nfe), &json!(5)));
        let mut cells = vec![nfe.to_string()];
        for label in ["last", "ema", "lcsc"] {
            cells.extend(["fd_heldout", "fd_independent"].map(|key| figure(&row[label], key)));
        }
        cells.push(format!("{:.0}", number(row, "seconds")));
        assert_eq!(lines[i], cells, "{said}");
        let found = coefficients(&search);
        assert_eq!((&found["nfe"], &found["fd_heldout"]), (&json!(nfe), &row["lcsc"]["fd_heldout"]));
        assert_eq!(alphas(&found).len(), 6);

        // A model of them is sampled as it was searched.
        let (file, model) = (search.join("coefficients.toml"), format!("{nfe}.safetensors"));
        succeed(folder, &["merge", "run", "--coefficients", file.to_str().unwrap(), "--out", &model]);
        assert_eq!(card(&folder.join(&model))["merged"], found);
        let said = succeed(folder, &["sample", "--weights", &model, "--n", "4", "--out", &format!("{nfe}.png")]);
        assert!(said.starts_with(&format!("4 images, {nfe} NFE each")), "{said}");
    }
    assert_ne!(bits(&folder.join("1.safetensors")), bits(&folder.join("3.safetensors")));
    assert_ne!(std::fs::read(folder.join("1.png")).unwrap(), std::fs::read(folder.join("3.png")).unwrap());
    assert_ne!(table[0]["last"]["fd_heldout"], table[1]["last"]["fd_heldout"]);
    assert_done(folder, &args, &said);

    // The run's own sampler makes three: a plain search finds the same.
    succeed(folder, &["search", "run"]);
    let run = folder.join("run");
    let [plain, studied] = ["search/default", "search/nfe/nfe-3"].map(|search| coefficients(&run.join(search)));
    assert_eq!((&plain["search"], &studied["search"]), (&json!("default"), &json!("nfe/nfe-3")));
    assert_eq!((&plain["checkpoint"], &plain["fd_heldout"]), (&studied["checkpoint"], &studied["fd_heldout"]));
    assert_eq!(bits(&run.join("merged.safetensors")), bits(&folder.join("3.safetensors")));

    let before = results(&run);
    let message = refuse(folder, &["search", "run", "--nfe", "3,4", "--name", "never"]);
    let expected = "this sampler cannot make an image in 4 network evaluations, expected an odd number";
    assert!(message.contains(expected), "{message}");
    assert!(results(&run) == before, "a refused study changed the folder");
}

#[test]
fn prefixes_tell_at_which_fraction_the_whole_is_reached() {
    let temp = trained(&[]);
    let folder = temp.path();
    let args = ["search", "run", "--prefix", "0.5", "--json", "table.json"];
    let said = succeed(folder, &args);
    let table = json(&folder.join("table.json"));
    let rows = table.as_array().unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((rows.len(), lines.len()), (2, 6));
    for (i, (fraction, nimg, k)) in [(0.5, 192, 3), (1.0, 384, 6)].into_iter().enumerate() {
        let row = &rows[i];
        assert_eq!((&row["fraction"], &row["nimg"], &row["checkpoints"]), (&json!(fraction), &json!(nimg), &json!(k)));
        assert_close(number(row, "train_seconds"), fraction * number(&rows[1], "train_seconds"));
        assert!(number(row, "train_seconds") > 0.0 && number(row, "search_seconds") > 0.0);
        let search = folder.join(format!("run/search/prefix/prefix-{fraction}"));
        let saved: Vec<u64> = (1..=k).map(|i| 64 * i).collect();
        let terms = coefficients(&search)["checkpoint"].clone();
        let found: Vec<u64> = terms.as_array().unwrap().iter().map(|t| t["nimg"].as_u64().unwrap()).collect();
        assert_eq!(found, saved);
        // Recorded EMA tracks lie at the end of the training alone.
        assert_eq!(header(&search)["tracks"].as_array().unwrap().len(), if fraction == 1.0 { 2 } else { 0 });
        let fds = ["fd_heldout", "fd_independent", "fd_pixel"];
        let mut cells = vec![fraction.to_string(), nimg.to_string(), k.to_string()];
        ["ema", "lcsc"].iter().for_each(|label| cells.extend(fds.map(|key| figure(&row[label], key))));
        cells.extend(["train_seconds", "search_seconds"].map(|key| format!("{:.0}", number(row, key))));
        assert_eq!(lines[1 + i].split_whitespace().collect::<Vec<_>>(), cells, "{said}");
    }
    for (line, (name, key)) in lines[3..].iter().zip([
        ("held-out FD", "fd_heldout"),
        ("independent FD", "fd_independent"),
        ("pixel FD", "fd_pixel"),
    ]) {
        let bar = number(&rows[1]["ema"], key);
        let whole = number(&rows[1], "train_seconds");
        let expected = match rows.iter().find(|row| number(&row["lcsc"], key) <= bar) {
            None => format!("{name}: LCSC does not reach the best EMA of the whole training ({bar:.3})"),
            Some(row) => format!(
                "{name}: LCSC reaches the best EMA of the whole training ({bar:.3}) at {} of it: {:.1}× less training, \
                 {:.1}× with the search counted",
                number(row, "fraction"),
                1.0 / number(row, "fraction"),
                whole / (number(row, "train_seconds") + number(row, "search_seconds")),
            ),
        };
        assert_eq!(*line, expected);
    }
    assert_done(folder, &args, &said);

    let message = refuse(folder, &["search", "run", "--prefix", "0.2", "--name", "never"]);
    assert!(message.contains("checkpoints in the window, expected at least 2"), "{message}");
    let ended = lcsc_in(folder, &["search", "run", "--prefix", "0.5,1.5"]);
    assert_eq!(ended.status, Some(2));
    assert!(ended.stderr.contains("`1.5` is no fraction in (0, 1]"), "{}", ended.stderr);
}

#[test]
fn where_checkpoints_are_held_changes_nothing() {
    let temp = trained(&[]);
    let folder = temp.path();
    let search = |name: &str, sets: &[&str]| {
        let mut args = vec!["search", "run", "--name", name, "--set", r#"search.method=["evolution", "gradient"]"#];
        ["search.budget.evaluations=8"].iter().chain(sets).for_each(|set| args.extend(["--set", set]));
        let ended = lcsc_in(folder, &args);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        (ended, folder.join("run/search").join(name))
    };
    let (said, resident) = search("resident", &[]);
    assert!(said.message().contains("searching 6 checkpoints (held on the device)"), "{}", said.stderr);
    let (said, mapped) = search("mapped", &["search.memory_gib=0"]);
    assert!(said.message().contains("searching 6 checkpoints (streamed from mapped files)"), "{}", said.stderr);
    let text = |search: &Path| std::fs::read_to_string(search.join("coefficients.toml")).unwrap();
    assert_eq!(text(&resident).replacen("resident", "mapped", 1), text(&mapped));
    assert_eq!(bits(&resident.join("merged.safetensors")), bits(&mapped.join("merged.safetensors")));
    let [a, b] = [&resident, &mapped].map(|search| without_times(&search.join("evaluations.jsonl")));
    assert_eq!(a[1..], b[1..]);
    let scores = evaluations(&resident);
    assert_eq!(["evolution", "gradient"].map(|method| of_method(&scores, method).len()), [4, 4]);
    // Groups are those of the method that has them; evolution moves one set of coefficients.
    let rows = |method| of_method(&scores, method)[0]["model"]["coefficients"].as_array().unwrap().len();
    assert_eq!(["evolution", "gradient"].map(rows), [1, 6]);
}

#[test]
fn tracks_window_thinning_and_patterns_choose_what_is_combined() {
    let temp = trained(&[r#"stage.0.trajectory.tracks=["all"]"#]);
    let folder = temp.path();
    let search = |name: &str, sets: &[&str]| {
        let mut args = vec!["search", "run", "--name", name];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        succeed(folder, &args);
        let found = coefficients(&folder.join("run/search").join(name));
        let terms = found["checkpoint"].as_array().unwrap().clone();
        let files = terms.iter().map(|t| t["file"].as_str().unwrap().to_string()).collect::<Vec<_>>();
        let groups = serde_json::from_value::<Vec<String>>(found["groups"].clone()).unwrap();
        (files, groups, alphas(&found))
    };
    let expected = |tracks: &[&str], saved: &[u64]| {
        let of = |track: &&str| saved.iter().map(|n| format!("ckpt-{n:012}-{track}.safetensors")).collect::<Vec<_>>();
        tracks.iter().flat_map(of).collect::<Vec<_>>()
    };
    let all = ["ema-h200", "ema-p0.100", "raw"];
    // So many images and steps that what is found is better by 10 %, not by what depends on the machine.
    let long = [
        "search.images=64",
        "search.selection_images=64",
        "search.gradient.images=64",
        "search.budget.evaluations=40",
        "search.gradient.lr=0.1",
    ];
    let sets = [r#"search.tracks=["all"]"#, "search.checkpoints=4", r#"search.groups={ patterns = ["model.enc.*"] }"#];
    let (files, groups, alphas) = search("all", &[&sets[..], &long].concat());
    assert_eq!(files, expected(&all, &[128, 192, 320, 384]));
    assert_eq!(groups, ["model.enc.*", "rest"]);
    assert!(alphas.iter().any(|row| row[0] != row[1]) && alphas.iter().all(|row| row.len() == 2), "{alphas:?}");
    // The file alone gives the same model.
    let own = folder.join("run/search/all");
    let args = ["merge", "run", "--out", "all.safetensors", "--coefficients", "run/search/all/coefficients.toml"];
    succeed(folder, &args);
    assert!(
        std::fs::read(folder.join("all.safetensors")).unwrap()
            == std::fs::read(own.join("merged.safetensors")).unwrap()
    );

    let sets = [r#"search.tracks=["raw", "ema-h200"]"#, "search.window=200", "search.groups=one"];
    let (files, groups, _) = search("two", &[&sets[..], &long].concat());
    assert_eq!(files, expected(&["ema-h200", "raw"], &[192, 256, 320, 384]));
    assert_eq!(groups, ["all"]);
    // Recorded EMA tracks are rivals, combined or not.
    assert_eq!(header(&folder.join("run/search/two"))["tracks"], json!(["ema-h200", "ema-p0.100"]));

    let before = results(folder);
    let patterns = r#"search.groups={ patterns = ["model.*", "model.enc.*"] }"#;
    let message = refuse(folder, &["search", "run", "--name", "never", "--set", patterns]);
    assert!(
        message.contains("search.groups: pattern `model.enc.*` fits no tensor that no pattern before"),
        "{message}"
    );
    assert!(results(folder) == before, "a refused search left something behind");
}

#[test]
fn searches_that_cannot_work_are_refused_before_any_work() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    // Whether groups fit the network is asked once all else is right.
    for problems in [
        &[(r#"search.groups={ patterns = ["*", "no.*"] }"#, "search.groups: pattern `no.*` fits no tensor")][..],
        &[
            ("search.groups={ patterns = [] }", "search.groups.patterns: expected at least one pattern"),
            (
                r#"search.tracks=["raw", "ema-x"]"#,
                "search.tracks[1]: stage `edm` has no track `ema-x`; it has: raw, ema-h200",
            ),
            (r#"search.method=["gradient", "cma-es", "gradient"]"#, "search.method[2]: `gradient` is named twice"),
            ("search.checkpoints=1", "search.checkpoints: expected at least 2"),
            ("search.window=64", "stage `edm` keeps 1 checkpoint of a track for the search, expected at least 2"),
            ("search.budget={}", "search.budget.evaluations: expected a limit"),
            ("search.when=during", "search.during.every_nimg: is 1000000, but stage `edm` trains 384 images"),
        ],
        &[(r#"search.method=["sgd"]"#, "search.method[0]: unknown choice `sgd`")],
    ] {
        let sets: Vec<&str> = problems.iter().map(|(set, _)| *set).collect();
        let message = refuse(folder, &run(&sets));
        for (set, expected) in problems {
            assert!(message.contains(expected), "{set}: {message}");
        }
    }
    for (args, expected) in [
        (&["--compare", "sgd"][..], "unknown method `sgd`, expected one of ema-grid, evolution"),
        (&["--worker", "--nfe", "3"], "cannot be used with"),
        (&["--compare", "evolution", "--prefix", "0.5"], "cannot be used with"),
    ] {
        let ended = lcsc_in(folder, &[&["search", "run"][..], args].concat());
        assert_eq!(ended.status, Some(2));
        assert!(ended.message().contains(expected), "{}", ended.stderr);
    }
    assert!(files(folder).is_empty(), "a refused search left something behind");
}

/// A process that shares a search; what it says on standard error goes to a file.
struct Worker {
    child: Child,
    number: u64,
}

/// The search that workers share.
const SHARED: [&str; 8] = [
    "search",
    "run",
    "--name",
    "shared",
    "--set",
    r#"search.method=["evolution", "cma-es"]"#,
    "--set",
    "search.budget.evaluations=60",
];

impl Worker {
    /// Starts several at once.
    fn start(folder: &Path, names: &[&str]) -> Vec<Self> {
        let said = |name: &&str| folder.join(name).with_extension("txt");
        let start = |name: &&str| {
            let mut command = command(folder, &[&SHARED[..], &["--worker"]].concat());
            command.stdout(Stdio::piped()).stderr(File::create(said(name)).unwrap()).spawn().unwrap()
        };
        let children: Vec<Child> = names.iter().map(start).collect();
        let numbered = |(mut child, name): (Child, &&str)| loop {
            assert!(child.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(said(name)).unwrap());
            let text = std::fs::read_to_string(said(name)).unwrap();
            let number = text.split_once(", worker ").and_then(|(_, rest)| rest.split_once('\n')?.0.parse().ok());
            match number {
                Some(number) => break Self { child, number },
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        children.into_iter().zip(names).map(numbered).collect()
    }

    fn end(self) -> Ended {
        self.child.wait_with_output().unwrap().into()
    }
}

/// What a line of a log is about.
fn place(line: &Value) -> (String, u64) {
    (line["phase"].to_string(), line["id"].as_u64().unwrap())
}

/// What a worker was at when it died.
fn left_by(search: &Path, worker: u64) -> Option<(String, u64)> {
    let log = json_lines(&search.join("evaluations.jsonl"));
    let of = |record: &'static str| log.iter().filter(move |line| line["record"] == record);
    let scored: BTreeSet<_> = of("evaluation").map(place).collect();
    of("claim").filter(|claim| claim["worker"] == worker).map(place).find(|place| !scored.contains(place))
}

#[test]
fn workers_share_a_search_and_outlive_a_killed_one() {
    let temp = trained(&[]);
    let folder = temp.path();
    let search = folder.join("run/search/shared");
    let mut workers = Worker::start(folder, &["a", "b", "c"]);
    let numbers: BTreeSet<u64> = workers.iter().map(|w| w.number).collect();
    assert_eq!(numbers, BTreeSet::from([1, 2, 3]));

    // Each has scored a candidate of evolution; one is killed in the middle of another.
    let searched = |search: &Path| {
        let evaluations = evaluations(search);
        evaluations.iter().filter(|e| e["phase"].get("search").is_some()).cloned().collect::<Vec<_>>()
    };
    while searched(&search).iter().map(|e| e["worker"].as_u64().unwrap()).collect::<BTreeSet<_>>() != numbers {
        assert!(workers.iter_mut().all(|w| w.child.try_wait().unwrap().is_none()), "the search ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (victim, left) = loop {
        let mut worker = workers.remove(0);
        worker.child.kill().unwrap();
        assert_eq!(worker.child.wait().unwrap().code(), None, "the search ended too early");
        if let Some(left) = left_by(&search, worker.number) {
            break (worker.number, left);
        }
        // It died between two candidates.
        workers.extend(Worker::start(folder, &["d"]));
    };

    // While workers live, nobody has the run alone; one of them is stopped to make sure.
    send("STOP", &workers[0].child);
    let begin = |args: &[&str]| spawn(folder, args);
    let others = [begin(&run(&["search.when=off"])), begin(&["search", "run", "--name", "other"])];
    for other in others {
        let ended = Ended::from(other.wait_with_output().unwrap());
        assert_eq!(ended.status, Some(1));
        assert!(ended.message().contains("run: another process works on this run"), "{}", ended.stderr);
    }
    send("CONT", &workers[0].child);

    let survivors: Vec<Ended> = workers.into_iter().map(Worker::end).collect();
    let said = survivors[0].stdout.clone();
    assert!(said.contains("search: evolution+cma-es, 60 evaluations, "), "{said}");
    for survivor in &survivors {
        assert_eq!((survivor.status, survivor.stdout.as_str()), (Some(0), said.as_str()));
    }
    let log = json_lines(&search.join("evaluations.jsonl"));
    assert_eq!((&log[0]["record"], log.iter().filter(|l| l["record"] == "header").count()), (&json!("header"), 1));
    let mut claims: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    let mut scored = BTreeSet::new();
    for line in &log[1..] {
        let worker = line["worker"].as_u64().unwrap();
        match line["record"].as_str().unwrap() {
            "claim" => claims.entry(place(line)).or_default().push(worker),
            "evaluation" => {
                assert!(scored.insert(place(line)), "scored twice: {line}");
                assert_eq!(claims[&place(line)].last(), Some(&worker), "another worker had claimed it: {line}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(claims.keys().collect::<BTreeSet<_>>(), scored.iter().collect());
    let twice: Vec<_> = claims.iter().filter(|(_, workers)| workers.len() > 1).collect();
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert!(*twice[0].0 == left && twice[0].1[0] == victim && twice[0].1[1] != victim, "{twice:?}");
    let scores = evaluations(&search);
    assert_eq!(["evolution", "cma-es"].map(|method| of_method(&scores, method).len()), [30, 30]);
    let baselines = scores.iter().filter(|e| e["phase"] == "baseline").count() as u64;
    let ids: Vec<u64> = scored.iter().filter(|(phase, _)| phase.contains("search")).map(|(_, id)| *id).collect();
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), (baselines..baselines + 60).collect());

    // Whoever comes later finds the work done, as one of several or alone.
    for worker in [&["--worker"][..], &[]] {
        let args = [&SHARED[..], worker].concat();
        assert_done(folder, &args, &said);
    }
    let args = ["search", "run", "--worker", "--name", "tuned", "--set", r#"search.method=["gradient", "finetune"]"#];
    let message = refuse(folder, &args);
    assert!(message.contains("`finetune` keeps its state in one process: it cannot be shared by workers"), "{message}");
    assert!(!folder.join("run/search/tuned/evaluations.jsonl").exists());
}

/// A run of 12 steps, with a search after every fifth.
fn during() -> Vec<&'static str> {
    run(&["search.when=during", "search.during={ every_nimg = 150, budget = { evaluations = 3 } }"])
}

/// Two run folders hold the same, but for what a clock said.
fn assert_same(found: &Path, expected: &Path) {
    let [a, b] = [found, expected].map(results);
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        match name.to_str().unwrap() {
            "state/state.safetensors" | "summary.json" | "report.html" => {}
            log if log.ends_with(".jsonl") => {
                assert_eq!(without_times(&found.join(log)), without_times(&expected.join(log)), "{log} differs");
            }
            file => assert!(bytes == b[&name], "{file} differs"),
        }
    }
}

#[test]
fn searches_while_training_are_resumed_like_the_training() {
    let (reference, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let said = succeed(reference.path(), &during());
    let run = reference.path().join("run");
    let found = json_lines(&run.join("search/during.jsonl"));
    let folders = [0, 1].map(|i| Path::new("search").join(found[i]["search"].as_str().unwrap()));
    let folder = |i: usize| run.join(&folders[i]);
    let count = |i: usize| lines(&folder(i).join("evaluations.jsonl")).len();
    let nimgs: Vec<u64> = found.iter().map(|f| f["nimg"].as_u64().unwrap()).collect();
    assert_eq!(nimgs, [160, 320]);
    for (i, (f, k)) in found.iter().zip([2, 5]).enumerate() {
        let search = folder(i);
        assert!(search.to_str().unwrap().contains(&format!("search/during/{:012}-", nimgs[i])), "{search:?}");
        let scores = evaluations(&search);
        let selected = scores.iter().filter(|e| e["phase"] == "selection").map(|e| number(e, "fd"));
        let [lcsc, ema] = ["fd_lcsc", "fd_ema"].map(|key| number(f, key));
        assert!(lcsc == selected.fold(f64::INFINITY, f64::min) && lcsc <= ema, "{f}");
        assert_eq!(of_method(&scores, "gradient").len(), 3);
        // A small search: one report seed, whatever the final one has.
        assert!(scores.iter().any(|e| e["phase"] == json!({ "report": 0 })));
        assert!(scores.iter().all(|e| e["phase"] != json!({ "report": 1 })));
        let saved: Vec<Value> = (1..=k).map(|i| json!({ "nimg": 64.0 * i as f64, "track": "raw" })).collect();
        assert_eq!(f["rows"], json!(saved));
        for row in f["coefficients"].as_array().unwrap() {
            assert_eq!(row.as_array().unwrap().len(), k);
        }
        // Each begins with what the one before found.
        let given = if i == 0 { json!([]) } else { json!([format!("found after {} images", nimgs[i - 1])]) };
        assert_eq!(header(&search)["given"], given);
    }
    let best = found.iter().min_by(|a, b| number(a, "fd_lcsc").total_cmp(&number(b, "fd_lcsc"))).unwrap();
    let given = json!([format!("found after {} images", best["nimg"])]);
    assert_eq!(header(&run.join("search/default"))["given"], given);
    assert_eq!(card(&run.join("merged.safetensors"))["merged"], coefficients(&run.join("search/default")));
    assert_done(reference.path(), &during(), &said);

    let counts = [0, 1].map(count);

    // The logs of the training, of the searches on the way, of what they found, and of the final search.
    let run = killed.path().join("run");
    let logs = [
        run.join("train.jsonl"),
        run.join(&folders[0]).join("evaluations.jsonl"),
        run.join(&folders[1]).join("evaluations.jsonl"),
        run.join("search/during.jsonl"),
        run.join("search/default/evaluations.jsonl"),
    ];
    let logs = logs.each_ref().map(|log| log.as_path());
    let first = 5;
    let second = first + counts[0] + 1 + 5;
    let last = second + counts[1] + 1 + 2;
    let mut moments = Moments::begin();
    let mut kills = 0;
    let mut kill = |low, high| {
        let at = moments.between(low, high);
        kills += u32::from(kill_at(killed.path(), &during(), &logs, at, &mut moments));
    };
    kill(1, first - 1);
    kill(first + 1, first + counts[0] - 3);
    // In training again: there is a model to use, but no whole to compare prefixes with.
    kill(second - 5, second - 3);
    let merged = card(&run.join("merged.safetensors"))["merged"].clone();
    assert_eq!(Path::new("search").join(merged["search"].as_str().unwrap()), folders[0]);
    assert!(number(&merged, "fd_heldout") > 0.0 && !run.join("search/default").exists());
    assert!(json_lines(logs[0]).last().unwrap()["nimg"].as_u64().unwrap() < 384);
    succeed(killed.path(), &["sample", "--weights", "run/merged.safetensors", "--n", "4", "--out", "early.png"]);
    let message = refuse(killed.path(), &["search", "run", "--prefix", "0.5"]);
    assert!(message.contains("stage `edm` is not trained to its end"), "{message}");
    kill(second + 1, second + counts[1] - 3);
    kill(last + 1, last + 30);
    assert!(kills >= 3, "only {kills} kills found the process alive");
    assert_eq!(succeed(killed.path(), &during()).lines().count(), said.lines().count());
    assert_same(&run, &reference.path().join("run"));
    assert_eq!(card(&run.join("merged.safetensors"))["merged"]["search"], "default");

    // A training that begins again otherwise forgets what was found.
    std::fs::remove_file(run.join("state/state.safetensors")).unwrap();
    let again = [&["train"][..], &during()[1..], &["--set", "seed=1"]].concat();
    succeed(killed.path(), &again);
    let found = json_lines(&run.join("search/during.jsonl"));
    assert_eq!(found.iter().map(|f| f["nimg"].as_u64().unwrap()).collect::<Vec<_>>(), nimgs);
    let begun = run.join("search").join(found[0]["search"].as_str().unwrap());
    assert_eq!((&header(&begun)["seed"], &header(&begun)["given"]), (&json!(1), &json!([])));
}
