//! Where initial parameters come from.

use tandem_mesh::ShardSlice;
use tandem_model::{Init, ParamSpec};
use tandem_tensor::random;

/// Something that can fill any slice of any parameter, so that no rank ever needs the whole of one.
pub trait WeightSource {
    /// Writes the elements of `slice` to `out`, as fp32.
    ///
    /// # Errors
    /// When the parameter cannot be read.
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// New weights that depend on the seed only, never on the mesh.
#[derive(Debug, Clone, Copy)]
pub struct RandomInit {
    /// The run's seed.
    pub seed: u64,
    /// Standard deviation of matrices and tables.
    pub initializer_range: f64,
}

impl WeightSource for RandomInit {
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match param.init {
            Init::Zeros => out.fill(0.0),
            Init::Ones => out.fill(1.0),
            Init::FanIn => {
                let inputs = param.shape.last().copied().unwrap_or(1).max(1);
                let bound = 1.0 / (inputs as f32).sqrt();
                for run in slice.runs() {
                    let values = &mut out[run.target..run.target + run.len];
                    random::fill_uniform(values, self.seed, &param.name, run.source as u64);
                    for value in values {
                        *value = (2.0 * *value - 1.0) * bound;
                    }
                }
            }
            Init::Normal => {
                for run in slice.runs() {
                    random::fill_normal(
                        &mut out[run.target..run.target + run.len],
                        self.seed,
                        &param.name,
                        run.source as u64,
                        self.initializer_range as f32,
                    );
                }
            }
        }
        Ok(())
    }
}
