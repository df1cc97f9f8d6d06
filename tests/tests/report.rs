//! The report page, read as text and looked at in a headless Chromium.

use lcsc_tests::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SECTIONS: [&str; 7] =
    ["Results", "Samples", "Coefficients", "Search", "Checkpoints", "Training", "To make it again"];

/// A page that opens the report in a frame as wide as a phone, uses it, and tells what it saw.
const HARNESS: &str = r#"<!doctype html><iframe id="frame" src="REPORT" style="width:360px;height:800px;border:0"></iframe>
<script>
document.getElementById("frame").addEventListener("load", () => {
  const frame = document.getElementById("frame"), page = frame.contentDocument, head = page.querySelectorAll("th button");
  const column = n => [...page.querySelectorAll("tbody tr")].map(row => row.cells[n].dataset.value);
  head[1].click();
  const upwards = column(1);
  head[1].click();
  const downwards = column(1);
  page.querySelector(".picture").click();
  const dialog = page.querySelector("dialog");
  const saw = {
    sections: [...page.querySelectorAll("h2")].map(h => h.textContent),
    upwards, downwards,
    plots: page.querySelectorAll("figure svg").length,
    axes: [...page.querySelectorAll("svg text")].map(t => t.textContent.trim()),
    broken: [...page.images].filter(i => i.src && i.naturalWidth === 0).length,
    enlarged: dialog.open && dialog.firstElementChild.naturalWidth > 0,
    width: page.documentElement.scrollWidth,
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.querySelector("svg text")).fill,
  };
  document.body.innerHTML = "<pre id=saw></pre>";
  document.getElementById("saw").textContent = JSON.stringify(saw);
});
</script>"#;

/// A small run.
fn run(folder: &Path) -> PathBuf {
    let sets = ["stage.0.nimg=384", "search.images=64", "search.report_images=64", "search.budget.evaluations=6"];
    let mut args = vec!["run", TINY, "--out", "run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    succeed(folder, &args);
    folder.join("run")
}

#[test]
fn a_run_ends_with_a_page_and_several_compare() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let page = std::fs::read_to_string(run(folder).join("report.html")).unwrap();
    for section in SECTIONS {
        assert!(page.contains(&format!("<h2>{section}</h2>")), "no section {section}");
    }
    let summary = json(&folder.join("run/summary.json"));
    for model in summary["models"].as_array().unwrap() {
        assert!(page.contains(&format!("{:.3}", model["fd_heldout"].as_f64().unwrap())), "{model}");
    }
    for picture in ["The same latents", "Samples of LCSC", "nearest to them in feature space"] {
        assert!(page.contains(picture), "{picture}");
    }
    // The page follows from the files alone.
    std::fs::remove_file(folder.join("run/report.html")).unwrap();
    succeed(folder, &["report", "run"]);
    assert_eq!(std::fs::read_to_string(folder.join("run/report.html")).unwrap(), page);

    std::fs::rename(folder.join("run"), folder.join("one")).unwrap();
    copy_folder(&folder.join("one"), &folder.join("two"));
    succeed(folder, &["report", "one", "two"]);
    let page = std::fs::read_to_string(folder.join("comparison.html")).unwrap();
    assert!(
        page.contains("one default: best so far")
            && page.contains("two edm")
            && page.matches("<td>two</td>").count() == 4
    );
    let refused = refuse(folder, &["report", "one", "two"]);
    assert!(refused.contains("comparison.html") && refused.contains("exists already"), "{refused}");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn a_browser_shows_it_on_a_phone_in_light_and_dark() {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    });
    let Some(browser) = found else {
        println!("SKIPPED: no Chromium here (apt-get install chromium), the page was not looked at");
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    run(folder);
    let coefficients = std::fs::read_to_string(folder.join("run/search/default/coefficients.toml")).unwrap();
    let groups = coefficients.parse::<toml::Table>().unwrap()["groups"].as_array().unwrap().len();
    let plots = groups + 6; // the search, the checkpoints, and four of the stage
    std::fs::write(folder.join("harness.html"), HARNESS.replace("REPORT", "run/report.html")).unwrap();
    let [light, dark] = ["1", "0"].map(|scheme| saw(browser, folder, scheme));
    for seen in [&light, &dark] {
        assert_eq!(seen["sections"], serde_json::json!(SECTIONS));
        let numbers = |key: &str| -> Vec<f64> {
            seen[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().parse().unwrap()).collect()
        };
        let (upwards, downwards) = (numbers("upwards"), numbers("downwards"));
        assert!(upwards.len() == 4 && upwards.is_sorted() && downwards.iter().rev().is_sorted(), "{seen}");
        assert_eq!(
            (&seen["enlarged"], &seen["broken"], &seen["plots"]),
            (&true.into(), &0.into(), &plots.into()),
            "{seen}"
        );
        assert!(seen["width"].as_u64().unwrap() <= 360, "the page is wider than a phone: {seen}");
        for axis in ["images trained in the stage", "coefficient", "seconds of search", "loss", "images a second"] {
            assert!(seen["axes"].as_array().unwrap().iter().any(|a| a == axis), "no axis `{axis}`: {seen}");
        }
    }
    assert_eq!((&light["paper"], &light["ink"]), (&"rgb(255, 255, 255)".into(), &"rgb(28, 31, 36)".into()));
    assert_eq!((&dark["paper"], &dark["ink"]), (&"rgb(20, 23, 27)".into(), &"rgb(230, 233, 237)".into()));
}

/// What the harness saw under a colour scheme of Chromium's (0 dark, 1 light), without a message on the console.
fn saw(browser: &str, folder: &Path, scheme: &str) -> Value {
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
        ])
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", folder.join("harness.html").display()))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "{log}");
    let text = dom.split_once("<pre id=\"saw\">").and_then(|(_, rest)| rest.split_once("</pre>")).expect(&dom).0;
    serde_json::from_str(&text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).unwrap()
}
