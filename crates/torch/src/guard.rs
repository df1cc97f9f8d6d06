//! One boundary a stage between un-prefixed tch calls, which panic, and `Result`.

use crate::error::{Error, Result, first_line};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });

/// Silences the panic message of code that runs inside [`catch`], which returns it as an error instead.
pub fn install_panic_hook() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            default(info);
        }
    }));
}

/// Runs a stage and turns a panic of an un-prefixed tch call (out of memory, wrong shape) into [`Error::Torch`].
///
/// # Errors
/// The stage's own error, or its panic with `during` as the place.
pub fn catch<T>(during: &str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(stage));
    GUARDED.set(before);
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        // tch panics with `called Result::unwrap() on an Err value: Torch("message\nException raised from …")`.
        let text = text.split_once("Torch(\"").map_or(text, |(_, rest)| rest);
        let message = first_line(&text.replace("\\n", "\n").replace("\\\"", "\""));
        Err(Error::Torch { during: format!("during {during}"), message })
    })
}

/// The outcome of a stage's step; an error leaves the stage as the panic of an un-prefixed tch call does.
///
/// # Panics
/// With the error.
#[expect(clippy::panic, reason = "the boundary of the stage makes an error of it")]
pub fn unguarded<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|e| {
        std::panic::panic_any(match e {
            Error::Torch { message, .. } => message,
            other => other.to_string(),
        })
    })
}

/// For another thread to call, so that its panics are as silent as those of this one.
pub(crate) fn guarded_alike() -> impl Fn() + Copy + Send {
    let guarded = GUARDED.get();
    move || GUARDED.set(guarded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[test]
    fn a_tch_panic_becomes_an_error_with_its_place() {
        let outcome = catch("sampling", || {
            let a = Tensor::from_slice(&[1f32, 2.0]);
            Ok(a.matmul(&Tensor::from_slice(&[1f32, 2.0, 3.0])))
        });
        let text = outcome.unwrap_err().to_string();
        assert!(text.starts_with("libtorch, during sampling: "), "{text}");
        assert!(text.contains("size") && !text.contains("Exception raised"), "{text}");
    }

    #[test]
    fn own_errors_pass_through() {
        let outcome: Result<()> = catch("x", || Err(Error::msg("mine")));
        assert_eq!(outcome.unwrap_err().to_string(), "mine");
    }
}
