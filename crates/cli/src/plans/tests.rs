use super::*;

fn trial(precision: Precision) -> Trial {
    let network = (&NetworkConfig::preset("tiny").unwrap(), &PreconditioningConfig::default());
    Trial::new(network, (ImageShape { channels: 1, resolution: 8, label_dim: 0 }, precision), 4, true)
}

fn took(ms: f64, loss: f64, cosine: f64) -> Found {
    Found::Took { seconds: 1e-3 * ms, loss, cosine }
}

/// Of a trial of the plain plan and channels-last.
fn of_two(precision: Precision, found: [Found; 2]) -> Verdict {
    Verdict::of(&Trial { plans: Plan::TRAINING[..2].to_vec(), ..trial(precision) }, &found)
}

#[test]
fn the_faster_right_plan_is_taken_and_the_other_is_told() {
    let verdict = |plain, last| of_two(Precision::Bf16, [took(plain, 2.0, 1.0), took(last, 1.999, 0.9995)]);
    let faster = verdict(95.0, 61.0);
    assert_eq!(
        (faster.plan, faster.text.as_str()),
        (Plan::TRAINING[1], "channels-last 61.000 ms a step; plain 95.000 ms")
    );
    let slower = verdict(61.0, 95.0);
    assert_eq!((slower.plan, slower.text.as_str()), (Plan::PLAIN, "plain 61.000 ms a step; channels-last 95.000 ms"));
}

#[test]
fn wrong_and_crashed_plans_are_left_however_fast() {
    let told = |precision, found: Found| of_two(precision, [took(95.0, 2.0, 1.0), found]);
    for (found, why) in [
        (took(10.0, 2.0, 0.998), "channels-last is wrong: the cosine"),
        (took(10.0, 2.021, 1.0), "its loss is 2.021"),
        (took(10.0, f64::NAN, 1.0), "its loss is NaN"),
        (took(10.0, 2.0, f64::NAN), "the plain one is NaN"),
        (Found::Failed("crashed (signal 11)".into()), "channels-last crashed (signal 11)"),
    ] {
        let verdict = told(Precision::Bf16, found);
        assert_eq!(verdict.plan, Plan::PLAIN);
        assert!(verdict.text.starts_with("plain 95.000 ms a step; ") && verdict.text.contains(why), "{}", verdict.text);
    }
    // What half precision may differ by, f32 may not.
    let found = || took(10.0, 2.001, 1.0);
    assert_eq!(told(Precision::Bf16, found()).plan, Plan::TRAINING[1]);
    assert_eq!(told(Precision::F32, found()).plan, Plan::PLAIN);
    let out_of_memory = [Found::Failed("CUDA out of memory".into()), Found::Begins];
    let verdict = of_two(Precision::F32, out_of_memory);
    assert_eq!((verdict.plan, verdict.text.as_str()), (Plan::PLAIN, "plain, without comparison: CUDA out of memory"));
}

/// A shell in place of the program: `script` sees its trial in $trial and how often it was started in $count.
fn found_by(script: &str) -> Result<Vec<Found>> {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "trial=$(cat); echo >> starts; count=$(wc -l < starts)\nbegins() {{ echo \"{{\\\"index\\\":$1,\\\"found\\\":\\\"begins\\\"}}\"; }}\n\
         took() {{ echo \"{{\\\"index\\\":$1,\\\"found\\\":{{\\\"took\\\":{{\\\"seconds\\\":$2,\\\"loss\\\":1.0,\\\"cosine\\\":1.0}}}}}}\"; }}\n{script}"
    );
    let mut shell = Command::new("sh");
    shell.current_dir(folder.path()).args(["-c", &text]);
    try_all(&trial(Precision::F32), shell)
}

fn seconds(seconds: f64) -> Found {
    Found::Took { seconds, loss: 1.0, cosine: 1.0 }
}

#[test]
fn after_a_crash_the_plans_that_are_left_are_tried_by_a_new_process() {
    let found = found_by(
        "case $count in
           1) begins 0; took 0 5; begins 1; kill -SEGV $$ ;;
           # Of the plain plan and the two that are left.
           2) case $trial in *'\"plans\":[{'*'},{'*'},{'*'},{'*) exit 1 ;; esac
              begins 0; took 0 6; begins 1; took 1 2; begins 2; took 2 3 ;;
         esac",
    );
    let crashed = Found::Failed("crashed (signal 11)".into());
    assert_eq!(found.unwrap(), [seconds(6.0), crashed, seconds(2.0), seconds(3.0)]);
}

#[test]
fn a_plain_plan_that_crashes_ends_the_trial() {
    let found = found_by("begins 0; kill -ABRT $$").unwrap();
    assert_eq!(found, [Found::Failed("crashed (signal 6)".into()), Found::Begins, Found::Begins, Found::Begins]);
    let text = found_by("exit 3").unwrap_err().to_string();
    assert!(text.contains("exit status: 3"), "{text}");
}

#[test]
fn graphs_are_tried_where_small_networks_sample() {
    let of = |preset, trains| {
        let network = (&NetworkConfig::preset(preset).unwrap(), &PreconditioningConfig::default());
        let image = ImageShape { channels: 3, resolution: 32, label_dim: 0 };
        Trial::new(network, (image, Precision::F32), 4, trains).plans
    };
    assert_eq!(of("tiny", false), Plan::of_sampling());
    assert_eq!(of("tiny", true), Plan::TRAINING);
    assert_eq!(of("ddpmpp-cifar10", false), Plan::TRAINING);
}

#[test]
fn a_verdict_is_of_a_gpu_and_a_network() {
    let (a, mut b) = (trial(Precision::Bf16), trial(Precision::Bf16));
    b.images = 512;
    assert_eq!(a.key("H100"), b.key("H100"));
    b.trains = false;
    assert_ne!(a.key("H100"), b.key("H100"));
    assert_ne!(a.key("H100"), a.key("H200"));
    assert_ne!(a.key("H100"), trial(Precision::F16).key("H100"));
}

#[test]
fn on_the_cpu_and_where_it_is_asked_for_the_plan_is_plain() {
    let group = Group::alone();
    assert_eq!(choose(PlanChoice::Auto, &trial(Precision::F32), Device::Cpu, &group).unwrap(), Plan::PLAIN);
    assert_eq!(choose(PlanChoice::Plain, &trial(Precision::F32), Device::Cuda(0), &group).unwrap(), Plan::PLAIN);
}
