//! Who is measured: the variants of ours, and the PyTorch programs.

/// A strategy of ours, with its level of sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Fsdp,
    Zero0,
    Zero1,
    Zero2,
}

impl Variant {
    pub const ALL: [Self; 4] = [Self::Fsdp, Self::Zero0, Self::Zero1, Self::Zero2];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Fsdp => "fsdp",
            Self::Zero0 => "zero0",
            Self::Zero1 => "zero1",
            Self::Zero2 => "zero2",
        }
    }

    /// The flags of `tandem bench step` that choose it.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Fsdp => &["--strategy", "fsdp"],
            Self::Zero0 => &["--strategy", "deepspeed", "--zero_stage", "0"],
            Self::Zero1 => &["--strategy", "deepspeed", "--zero_stage", "1"],
            Self::Zero2 => &["--strategy", "deepspeed", "--zero_stage", "2"],
        }
    }
}

/// A program in benches/peers, with or without jemalloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    name: &'static str,
    program: &'static str,
    jemalloc: bool,
    /// Whether it can cut layers over ranks.
    tensor_parallel: bool,
}

impl Peer {
    pub const ALL: [Self; 7] = [
        Self::new("naive", "naive.py", false),
        Self::new("tuned", "tuned.py", false),
        Self::new("tuned+jemalloc", "tuned.py", true),
        Self::new("hand-tuned", "hand_tuned.py", false),
        Self::new("hand-tuned+jemalloc", "hand_tuned.py", true),
        Self {
            tensor_parallel: false,
            ..Self::new("ddp", "ddp.py", false)
        },
        Self {
            tensor_parallel: false,
            ..Self::new("ddp+jemalloc", "ddp.py", true)
        },
    ];

    const fn new(name: &'static str, program: &'static str, jemalloc: bool) -> Self {
        Self {
            name,
            program,
            jemalloc,
            tensor_parallel: true,
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name == name)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its file in benches/peers.
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// Whether it runs with jemalloc.
    pub fn has_jemalloc(&self) -> bool {
        self.jemalloc
    }

    /// Whether it can train with layers that are cut over `tp` ranks.
    pub fn suits(&self, tp: usize) -> bool {
        self.tensor_parallel || tp == 1
    }
}

/// One side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Ours(Variant),
    Peer(Peer),
}

impl Contender {
    pub fn name(&self) -> String {
        match self {
            Self::Ours(variant) => format!("tandem {}", variant.name()),
            Self::Peer(peer) => peer.name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::configuration;
    use super::*;

    #[test]
    fn data_parallelism_alone_is_not_asked_for_more() {
        let ddp = Peer::named("ddp").unwrap();
        assert!(ddp.suits(configuration::named("dp2")[0].tp));
        assert!(!ddp.suits(configuration::named("tp2-dp2")[0].tp));
    }

    #[test]
    fn names_lead_back_to_what_they_name() {
        for variant in Variant::ALL {
            assert_eq!(Variant::named(variant.name()), Some(variant));
        }
        for peer in Peer::ALL {
            assert_eq!(Peer::named(peer.name()), Some(peer));
        }
    }
}
