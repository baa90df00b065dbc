//! The vocabulary: which collectives, reductions and kinds of elements there are, and what ranks must agree on.

use std::fmt;
use std::sync::Arc;

pub use tandem_kernels::reduce::ReduceOp;
use tandem_tensor::Kind;

/// What a group of ranks does together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Building the group itself.
    NewGroup,
    /// Every rank ends with the reduction of all ranks' tensors.
    AllReduce,
    /// Every rank ends with the concatenation of all ranks' parts.
    AllGather,
    /// Every rank ends with its part of the reduction.
    ReduceScatter,
    /// Every rank ends with what each rank has for it.
    AllToAll,
    /// Every rank ends with the root's tensor.
    Broadcast,
    /// Nobody returns before all have come.
    Barrier,
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewGroup => "new_group",
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
        })
    }
}

/// One operation of one group, for messages: `all_reduce #812 of group "dp" (step 40)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// What the group was doing.
    pub collective: Collective,
    /// The operation's number in its group, from 1.
    pub sequence: u64,
    /// The group's name.
    pub group: Arc<str>,
    /// The training step, where one was set.
    pub step: Option<u64>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.collective == Collective::NewGroup {
            write!(f, "the creation of group {:?}", self.group)?;
        } else {
            let Self {
                collective,
                sequence,
                group,
                ..
            } = self;
            write!(f, "{collective} #{sequence} of group {group:?}")?;
        }
        match self.step {
            Some(step) => write!(f, " (step {step})"),
            None => Ok(()),
        }
    }
}

/// The kinds of elements that collectives can move and reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
    F64,
    I64,
    I32,
    U8,
}

impl Element {
    pub(crate) const ALL: [Self; 7] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::F64,
        Self::I64,
        Self::I32,
        Self::U8,
    ];

    pub(crate) fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Float => Some(Self::F32),
            Kind::BFloat16 => Some(Self::Bf16),
            Kind::Half => Some(Self::F16),
            Kind::Double => Some(Self::F64),
            Kind::Int64 => Some(Self::I64),
            Kind::Int => Some(Self::I32),
            Kind::Uint8 => Some(Self::U8),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
        }
    }
}

/// What all ranks of a group must say alike about an operation before any byte of it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) collective: Collective,
    pub(crate) reduce: Option<ReduceOp>,
    pub(crate) element: Element,
    pub(crate) root: u32,
    /// Elements in all.
    pub(crate) elements: u64,
    /// Hash of the counts per rank.
    pub(crate) layout: u64,
    pub(crate) sequence: u64,
}

impl Signature {
    /// Words of the encoded form.
    pub(crate) const WORDS: usize = 4;

    pub(crate) fn encode(&self) -> [u64; Self::WORDS] {
        let collective = self.collective as u64;
        let reduce = self.reduce.map_or(0xff, |op| op as u64);
        let element = self.element as u64;
        let kinds = collective | reduce << 8 | element << 16 | u64::from(self.root) << 32;
        [kinds, self.elements, self.layout, self.sequence]
    }

    /// The reverse of [`Signature::encode`]; `None` for words that no signature encodes to.
    pub(crate) fn decode(words: [u64; Self::WORDS]) -> Option<Self> {
        const COLLECTIVES: [Collective; 7] = [
            Collective::NewGroup,
            Collective::AllReduce,
            Collective::AllGather,
            Collective::ReduceScatter,
            Collective::AllToAll,
            Collective::Broadcast,
            Collective::Barrier,
        ];
        let [kinds, elements, layout, sequence] = words;
        let byte = |shift: u32| (kinds >> shift & 0xff) as usize;
        let reduce = match byte(8) {
            0xff => None,
            index => Some(*[ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min].get(index)?),
        };
        Some(Self {
            collective: *COLLECTIVES.get(byte(0))?,
            reduce,
            element: *Element::ALL.get(byte(16))?,
            root: (kinds >> 32) as u32,
            elements,
            layout,
            sequence,
        })
    }

    /// Some that there are.
    #[cfg(feature = "testing")]
    pub(crate) fn samples() -> [Self; 4] {
        let one = Self {
            collective: Collective::AllReduce,
            reduce: Some(ReduceOp::Sum),
            element: Element::F32,
            root: 0,
            elements: 1 << 20,
            layout: 0,
            sequence: 812,
        };
        let gather = Self {
            collective: Collective::AllGather,
            reduce: None,
            element: Element::Bf16,
            layout: u64::MAX,
            ..one
        };
        let exchange = Self {
            collective: Collective::AllToAll,
            ..gather
        };
        let broadcast = Self {
            collective: Collective::Broadcast,
            root: 3,
            ..gather
        };
        [one, gather, exchange, broadcast]
    }

    /// What tells two ranks' operations apart, in words.
    pub(crate) fn describe(words: [u64; Self::WORDS]) -> String {
        let Some(it) = Self::decode(words) else {
            return "something unreadable".to_owned();
        };
        let mut text = it.collective.to_string();
        if let Some(op) = it.reduce {
            text += &format!("({op:?})").to_lowercase();
        }
        if it.collective == Collective::Broadcast {
            text += &format!(" from group rank {}", it.root);
        }
        if it.collective != Collective::Barrier {
            text += &format!(" of {} {} elements", it.elements, it.element.name());
        }
        if matches!(
            it.collective,
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll
        ) {
            // Only there to show that the splits differ when the totals do not.
            text += &format!(" (split {:04x})", it.layout & 0xffff);
        }
        text += &format!(" as operation #{}", it.sequence);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_survive_encoding() {
        for element in Element::ALL {
            for (collective, reduce) in [
                (Collective::AllToAll, None),
                (Collective::Barrier, None),
                (Collective::ReduceScatter, Some(ReduceOp::Sum)),
                (Collective::AllReduce, Some(ReduceOp::Min)),
            ] {
                let signature = Signature {
                    collective,
                    reduce,
                    element,
                    root: 7,
                    elements: 1 << 40,
                    layout: u64::MAX,
                    sequence: 812,
                };
                assert_eq!(Signature::decode(signature.encode()), Some(signature));
            }
        }
        assert_eq!(Signature::decode([77, 0, 0, 0]), None);
        assert_eq!(Signature::describe([77, 0, 0, 0]), "something unreadable");
    }

    #[test]
    fn sites_read_as_sentences() {
        let site = Site {
            collective: Collective::AllReduce,
            sequence: 812,
            group: "dp".into(),
            step: Some(40),
        };
        assert_eq!(
            site.to_string(),
            "all_reduce #812 of group \"dp\" (step 40)"
        );
        let creation = Site {
            collective: Collective::NewGroup,
            step: None,
            ..site
        };
        assert_eq!(creation.to_string(), "the creation of group \"dp\"");
    }
}
