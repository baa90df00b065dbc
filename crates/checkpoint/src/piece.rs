//! What a rank contributes to a checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};
use tandem_mesh::ShardSlice;

/// What a tensor is to the optimizer. In JSON, its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Role {
    /// The parameter itself: the fp32 master weight.
    Param,
    /// Adam's running mean of the gradient.
    ExpAvg,
    /// Adam's running mean of the squared gradient.
    ExpAvgSq,
    /// The state of another optimizer.
    Other(String),
}

impl Role {
    /// The name: torch.optim's, where it has one.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Param => "param",
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Role {
    fn from(name: String) -> Self {
        match name.as_str() {
            "param" => Self::Param,
            "exp_avg" => Self::ExpAvg,
            "exp_avg_sq" => Self::ExpAvgSq,
            _ => Self::Other(name),
        }
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.as_str().to_owned()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A part of a tensor that this rank owns. Of a part that several ranks hold, one owns it: the caller decides which.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// The tensor's Hugging Face name.
    pub tensor: &'a str,
    /// What of it.
    pub role: Role,
    /// Which part.
    pub slice: ShardSlice,
    /// Its elements, in the slice's order.
    pub data: &'a [f32],
}
