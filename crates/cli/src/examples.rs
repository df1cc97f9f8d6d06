//! What the help of each command ends with.

pub const LCSC: &str = "\
Examples:
  lcsc run configs/quickstart.toml         # train, search, merge, report; again: go on after a kill
  lcsc search runs/quickstart --name long --seconds 600
  lcsc sample --weights runs/quickstart/merged.safetensors --out samples.png
  lcsc help search                         # the help of a command";

pub const RUN: &str = "\
Examples:
  lcsc run configs/tiny/smoke.toml         # seconds on a CPU; the run folder is runs/smoke
  lcsc run configs/quickstart.toml --set seed=1 --out runs/seed1
  lcsc run configs/cifar10-edm.toml --set data.source=cifar10.zip --set stage.0.batch=256";

pub const TRAIN: &str = "\
Examples:
  lcsc train configs/quickstart.toml       # the same command resumes
  lcsc train configs/quickstart.toml --set stage.1.optimizer.radam.lr=2e-4 --out runs/faster";

pub const SEARCH: &str = "\
Examples:
  lcsc search runs/quickstart              # as the run's config says
  lcsc search runs/quickstart --name evolution --set 'search.method=[\"evolution\"]' --seconds 60
  lcsc search runs/quickstart --compare evolution,cma-es,gradient:one,gradient:levels --seconds 60
  lcsc search runs/quickstart --worker     # in several shells: they share one search";

pub const WATCH: &str = "\
Examples:
  lcsc watch runs/quickstart               # q leaves; the run goes on
  lcsc watch runs/quickstart --once        # as plain text, for scripts";

pub const LAUNCH: &str = "\
Examples:
  lcsc launch --nproc 2 -- run configs/quickstart.toml
  lcsc launch --nproc 8 -- train configs/cifar10-edm.toml --set stage.0.batch=512
  lcsc launch --nproc 8 -- eval --weights merged.safetensors --n 50000 --extractor inception";

pub const MERGE: &str = "\
Examples:
  lcsc merge runs/quickstart --out lcsc-bf16.safetensors --dtype bf16
  lcsc merge runs/quickstart --coefficients runs/quickstart/search/long/coefficients.toml --out long.safetensors";

pub const SAMPLE: &str = "\
Examples:
  lcsc sample --weights runs/quickstart/merged.safetensors --out sheet.png
  lcsc sample --weights merged.safetensors --n 50000 --seed 1 --out samples.npz
  lcsc sample --weights merged.safetensors --n 16 --sampler 'consistency = { mid_sigmas = [0.8] }' --out images/";

pub const EVAL: &str = "\
Examples:
  lcsc eval --weights runs/quickstart/merged.safetensors
  lcsc eval --weights merged.safetensors --n 50000 --extractor inception --reference cifar10.zip
  lcsc eval --images samples.npz --reference fid_stats.npz --metrics fd --json fid.json";

pub const IMPORT: &str = "\
Examples:
  lcsc import edm-cifar10.pkl --config configs/cifar10-edm.toml --out edm.safetensors
  lcsc import checkpoint.pth --key state_dict --config mine.toml --out mine.safetensors
  lcsc import runs/theirs --trajectory 'ckpts/model*.pt' --config mine.toml
  lcsc import runs/theirs --list files.txt --config mine.toml";

pub const EXPORT: &str = "\
Examples:
  lcsc export runs/quickstart/merged.safetensors merged.pt --naming edm
  lcsc export merged.safetensors theirs.safetensors --naming openai --attention-order new";

pub const DATA: &str = "\
Examples:
  lcsc data info digits
  lcsc data convert photos/ photos.zip --resolution 64
  lcsc data fetch cifar10";

pub const DATA_CONVERT: &str = "\
Examples:
  lcsc data convert cifar-10-python.tar.gz cifar10-test.zip --split test
  lcsc data convert photos/ photos.zip --resolution 64 --rgb --skip-corrupt
  lcsc data convert ILSVRC/Data/CLS-LOC/train imagenet.zip --resolution 64 --crop center-dhariwal --rgb";

pub const DATA_INFO: &str = "\
Examples:
  lcsc data info digits --sheet digits.png
  lcsc data info photos/ --resolution 64   # as training would see them";

pub const DATA_FETCH: &str = "\
Examples:
  lcsc data fetch cifar10 --out data/
  lcsc data fetch inception --url https://example.org/pt_inception-2015-12-05-6726825d.pth";

pub const DOCTOR: &str = "\
Examples:
  lcsc doctor
  lcsc doctor configs/cifar10-edm.toml     # also the disk that a run of it needs";

pub const REPORT: &str = "\
Examples:
  lcsc report runs/quickstart              # writes runs/quickstart/report.html
  lcsc report runs/seed0 runs/seed1 --out seeds.html";

pub const BENCH: &str = "\
Examples:
  lcsc bench
  lcsc bench train-cifar10 --precision bf16 --device cuda
  lcsc bench --threads 1 --repeats 20 --json bench.json
  lcsc launch --nproc 2 -- bench all-reduce train-tiny";

pub const CONFIG: &str = "\
Examples:
  lcsc config check configs/quickstart.toml
  lcsc config show configs/quickstart.toml
  lcsc config reference";

pub const CONFIG_CHECK: &str = "\
Examples:
  lcsc config check configs/quickstart.toml
  lcsc config check mine.toml --set stage.0.batch=256";

pub const CONFIG_SHOW: &str = "\
Examples:
  lcsc config show configs/quickstart.toml
  lcsc config show configs/quickstart.toml --set search.budget.seconds=60 > mine.toml";

pub const CONFIG_SCHEMA: &str = "\
Examples:
  lcsc config schema > lcsc.schema.json
  lcsc config schema | python3 -m json.tool";

pub const CONFIG_REFERENCE: &str = "\
Examples:
  lcsc config reference | less
  lcsc config reference > config-reference.md";

pub const CONFIG_EXPLAIN: &str = "\
Examples:
  lcsc config explain configs/cifar10-edm.toml
  lcsc config explain configs/quickstart.toml --set search.budget.evaluations=400";

pub const COMPLETIONS: &str = "\
Examples:
  lcsc completions bash > ~/.local/share/bash-completion/completions/lcsc
  lcsc completions zsh > ~/.zfunc/_lcsc
  lcsc completions fish > ~/.config/fish/completions/lcsc.fish";

pub const MAN: &str = "\
Examples:
  lcsc man ~/.local/share/man/man1         # then: man lcsc, man lcsc-search
  lcsc man . && man ./lcsc.1";

#[cfg(test)]
mod tests {
    use crate::args::Args;
    use crate::docs::problem;
    use clap::{Command, CommandFactory};

    fn check(command: &Command) {
        let name = command.get_name();
        let help = command.get_after_help().unwrap_or_else(|| panic!("{name}: no examples")).to_string();
        let examples: Vec<&str> = help.strip_prefix("Examples:\n").unwrap().lines().map(str::trim).collect();
        assert!((2..=4).contains(&examples.len()), "{name}");
        for example in examples {
            assert_eq!((example.starts_with("lcsc "), problem(example)), (true, None), "{example}");
            assert!(name == "lcsc" || example.contains(name), "{example}: of {name}");
        }
        command.get_subcommands().filter(|c| !c.is_hide_set()).for_each(check);
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        check(&Args::command());
    }
}
