//! Small arrays with the values that `testdata/expected.py` computed from them.

use lcsc_torch::Tensor;
use serde_json::Value;

pub(crate) struct Expected(Value);

impl Expected {
    pub(crate) fn read() -> Self {
        Self(serde_json::from_str(include_str!("../testdata/expected.json")).unwrap())
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap()
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<f64> {
        self.0[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// f64 [rows,columns].
    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        let rows = self.0[name].as_array().unwrap();
        let values: Vec<f64> = rows.iter().flat_map(|r| r.as_array().unwrap()).map(|v| v.as_f64().unwrap()).collect();
        Tensor::from_slice(&values).view([rows.len() as i64, -1])
    }
}
