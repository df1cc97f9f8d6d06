//! End-to-end and parity tests; see the test targets.
