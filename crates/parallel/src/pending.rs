//! The result of a collective, before it is there.

use tandem_comm::Work;
use tandem_model::{PendingTensor, TpError};
use tandem_tensor::Tensor;

use crate::error::tp_error;

/// What ranks were asked to add up, to put together or to exchange.
pub(crate) struct Joining {
    /// Where there is nobody to ask, the result is there.
    pub(crate) work: Option<Work>,
    pub(crate) result: Tensor,
}

impl Joining {
    /// The result.
    pub(crate) fn finish(self) -> Result<Tensor, TpError> {
        if let Some(work) = self.work {
            work.wait().map_err(tp_error)?;
        }
        Ok(self.result)
    }

    /// Lets it run while the caller computes something else.
    pub(crate) fn started(mut self) -> Box<dyn PendingTensor> {
        if let Some(work) = &mut self.work {
            work.start();
        }
        Box::new(self)
    }
}

impl PendingTensor for Joining {
    fn wait(self: Box<Self>) -> Result<Tensor, TpError> {
        (*self).finish()
    }
}
