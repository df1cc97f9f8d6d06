//! What is never merged.

use super::*;
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn wrong_coefficients_and_derivatives_are_refused() {
    let (_temp, run, _) = trajectory(2, F32);
    let window = window(&run, Placement::Device);
    let refused = |alpha: &[Vec<f64>]| window.merge(&two(), alpha).unwrap_err().to_string();
    assert_eq!(refused(&[uniform(2)]), "coefficients for 1 groups, there are 2");
    let text = refused(&[uniform(2), uniform(1)]);
    assert_eq!(text, "group `weight`: 1 coefficients for a window of 2 checkpoints: one each is needed");
    let text = refused(&[vec![1.0, f64::NAN], uniform(2)]);
    assert_eq!(text, "group `bias`: coefficient 1 is NaN: coefficients must be finite");
    let text = window.merge(&wide().1, &[uniform(2), uniform(2)]).unwrap_err().to_string();
    assert_eq!(text, "groups of 570086 parameters for checkpoints of 7: not the same network");
    for (g, found) in [
        (Tensor::zeros([8], (Kind::Float, Device::Cpu)), "[8] and type Float"),
        (Tensor::zeros([7], (Kind::Half, Device::Cpu)), "[7] and type Half"),
    ] {
        let text = window.project(&one(), &g).unwrap_err().to_string();
        assert_eq!(text, format!("a derivative of shape {found}, expected [7] and Float"));
    }
}

/// The file of a checkpoint, once a change is sure to show in its time.
fn to_be_altered(run: &RunFolder, window: &Window, i: usize) -> PathBuf {
    std::thread::sleep(Duration::from_millis(20));
    run.trajectory().join(&window.checkpoints()[i].file)
}

#[test]
fn altered_files_are_never_merged() {
    let (_temp, run, _) = trajectory(2, F32);
    let mapped = window(&run, Placement::Mapped);
    let path = to_be_altered(&run, &mapped, 1);
    let good = std::fs::read(&path).unwrap();
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    for bad in [&altered[..], &good[..good.len() - 1], b""] {
        std::fs::write(&path, bad).unwrap();
        let g = layout().init(1, Device::Cpu).unwrap().theta;
        for error in [
            mapped.merge(&one(), &[uniform(2)]).unwrap_err(),
            mapped.project(&one(), &g).unwrap_err(),
            load(&run, &layout(), Placement::Mapped).unwrap_err(),
            load(&run, &layout(), Placement::Device).unwrap_err(),
        ] {
            assert!(error.to_string().contains("ckpt-000000000200-raw.safetensors: torn or altered"), "{error}");
        }
        assert_eq!(mapped.merge(&one(), &[one_hot(2, 0)]).unwrap().size(), [7]);
    }
}

#[test]
fn replaced_and_missing_files_are_never_merged() {
    let (_temp, run, _) = trajectory(2, F32);
    let mapped = window(&run, Placement::Mapped);
    let path = to_be_altered(&run, &mapped, 0);
    // Another file, though of the same length and time.
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::rename(run.trajectory().join(&mapped.checkpoints()[1].file), &path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let text = mapped.merge(&one(), &[one_hot(2, 0)]).unwrap_err().to_string();
    assert!(text.contains("000100-raw.safetensors: torn or altered") && text.contains("resume training"), "{text}");
    let text = mapped.merge(&one(), &[one_hot(2, 1)]).unwrap_err().to_string();
    assert!(text.contains("000200-raw.safetensors: unreadable") && text.contains("resume training"), "{text}");
}

#[test]
fn a_file_of_another_type_than_the_manifest_says_is_refused() {
    let (_temp, run, _) = trajectory(1, F32);
    let mut checkpoints = Manifest::read(&run).unwrap();
    checkpoints[0].dtype = Bf16;
    let memory = Memory { device: Device::Cpu, device_bytes: u64::MAX, host_bytes: 0 };
    let text = Window::load(&run, &checkpoints, &layout(), memory).unwrap_err().to_string();
    assert!(text.ends_with("000100-raw.safetensors: its parameters are Float, the manifest says BFloat16"), "{text}");
}

#[test]
fn an_empty_window_and_unequal_buffers_are_refused() {
    let (_temp, run, _) = trajectory(1, F32);
    let memory = Memory { device: Device::Cpu, device_bytes: 0, host_bytes: 0 };
    let text = Window::load(&run, &[], &layout(), memory).unwrap_err().to_string();
    assert!(text.contains("no checkpoints"), "{text}");
    let weights = layout().init(1, Device::Cpu).unwrap();
    let _ = weights.buffers[0].get(0).fill_(5.0);
    append(&run, &layout(), 200, F32, &weights);
    for placement in PLACEMENTS {
        let text = load(&run, &layout(), placement).unwrap_err().to_string();
        assert!(text.contains("000200-raw.safetensors: buffer `freqs`") && text.contains("000100-raw"), "{text}");
    }
}
