//! What computes: peaks, memory and links of GPUs as their data sheets have them, or what a machine was measured to reach.

use serde::{Deserialize, Serialize};
use tandem_tensor::Kind;

/// One device among its like in a node, and nodes in their network. Rates are per second; bytes go in one direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What it is called.
    pub name: String,
    /// Whether it is a processor, whose ranks share its cores and memory, and not a GPU.
    #[serde(default)]
    pub cpu: bool,
    /// Bytes of its own memory; of a processor, this rank's share.
    pub memory_bytes: f64,
    /// Floating point operations of a dense product of bf16 matrices with fp32 sums.
    pub bf16_flops: f64,
    /// The same in fp32.
    pub fp32_flops: f64,
    /// What large products reach of these peaks.
    pub product_efficiency: f64,
    /// The length of a side of a product at which half of that is left, where the other two are long: a GPU's units are idle, and a
    /// processor copies each operand once for as many results as the other is wide. Without it, 48 on a GPU and 0 on a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_side: Option<f64>,
    /// What attention reaches of them, over the products that its mask leaves: forward, and backward.
    pub attention_efficiency: [f64; 2],
    /// Bytes between its memory and its cores.
    pub memory_bandwidth: f64,
    /// What passes over long vectors reach of that.
    pub memory_efficiency: f64,
    /// The shortest time that an operation takes on a GPU, in seconds, whatever its size: to launch it, mostly. What one takes on a
    /// processor besides its work: to hand it over to threads.
    #[serde(default)]
    pub operation_s: f64,
    /// To the other devices of its node.
    pub link: Link,
    /// From its node to the others, for all its devices together.
    pub network: Link,
    /// Devices in a node.
    pub devices_per_node: usize,
    /// The part of its time during which collectives can run beside computing; 0 where both need the same cores.
    pub overlap: f64,
}

/// A way for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bytes per second in one direction.
    pub bandwidth: f64,
    /// What collectives reach of it.
    pub efficiency: f64,
    /// Seconds until the first byte arrives.
    pub latency_s: f64,
}

impl Link {
    /// What collectives move per second.
    pub(crate) fn rate(&self) -> f64 {
        self.bandwidth * self.efficiency
    }
}

/// A row of the table: what a data sheet says.
struct DataSheet {
    /// For `--device_type`.
    name: &'static str,
    /// What drivers call it: the first row that has a word of a device's own name is its row.
    driver: &'static str,
    /// Dense bf16 with fp32 sums; fp16 where there is no bf16.
    bf16_tera: f64,
    fp32_tera: f64,
    memory_gb: f64,
    memory_gb_per_s: f64,
    /// NVLink, or the PCIe slot where there is none; one direction.
    link_gb_per_s: f64,
    /// The node's network adapters together, in the machines that these devices usually come in.
    network_gb_per_s: f64,
}

/// NVIDIA's data sheets: A100 (2021-06), H100 (2023-04), H100 NVL (2024-03), H200 (2024-11), DGX B200 (2025-01, an eighth of it),
/// T4 (2019-03), L4, L40S (2023-08), A10 (2021-03), and the white papers of Ada and Blackwell for the RTX cards. Peaks are the
/// dense ones. NVLink is half of the data sheets' number, which counts both directions. The network is that of DGX machines (A100:
/// 8 x 200 Gbit/s, later: 8 x 400), and elsewhere one adapter of 100 Gbit/s.
const TABLE: [DataSheet; 16] = [
    sheet(
        "b200",
        "B200",
        [2250.0, 75.0],
        [180.0, 8000.0],
        900.0,
        400.0,
    ),
    sheet("h200", "H200", [989.0, 67.0], [141.0, 4800.0], 450.0, 400.0),
    sheet(
        "h100-pcie",
        "H100 PCIe",
        [756.0, 51.0],
        [80.0, 2000.0],
        64.0,
        50.0,
    ),
    sheet(
        "h100-nvl",
        "H100 NVL",
        [835.0, 60.0],
        [94.0, 3900.0],
        64.0,
        50.0,
    ),
    sheet("h100", "H100", [989.0, 67.0], [80.0, 3350.0], 450.0, 400.0),
    sheet(
        "a100-40",
        "A100-SXM4-40GB",
        [312.0, 19.5],
        [40.0, 1555.0],
        300.0,
        200.0,
    ),
    sheet(
        "a100-40-pcie",
        "A100-PCIE-40GB",
        [312.0, 19.5],
        [40.0, 1555.0],
        32.0,
        25.0,
    ),
    sheet(
        "a100-80-pcie",
        "A100 80GB PCIe",
        [312.0, 19.5],
        [80.0, 1935.0],
        32.0,
        25.0,
    ),
    sheet(
        "a100-80",
        "A100",
        [312.0, 19.5],
        [80.0, 2039.0],
        300.0,
        200.0,
    ),
    sheet("a10", "A10", [125.0, 31.2], [24.0, 600.0], 32.0, 12.5),
    sheet("l40s", "L40S", [362.0, 91.6], [48.0, 864.0], 32.0, 12.5),
    sheet("l4", "L4", [121.0, 30.3], [24.0, 300.0], 32.0, 12.5),
    sheet(
        "rtx5090",
        "RTX 5090",
        [209.5, 104.8],
        [32.0, 1792.0],
        64.0,
        12.5,
    ),
    sheet(
        "rtx4090",
        "RTX 4090",
        [165.2, 82.6],
        [24.0, 1008.0],
        32.0,
        12.5,
    ),
    sheet("t4", "T4", [65.0, 8.1], [16.0, 320.0], 16.0, 12.5),
    // torchtitan's, whose published numbers this model is held against: an H100 with slower memory and 500 W.
    sheet(
        "h100-96-hbm2e",
        "H100 96GB HBM2e",
        [989.0, 67.0],
        [96.0, 2400.0],
        450.0,
        400.0,
    ),
];

const fn sheet(
    name: &'static str,
    driver: &'static str,
    [bf16_tera, fp32_tera]: [f64; 2],
    [memory_gb, memory_gb_per_s]: [f64; 2],
    link_gb_per_s: f64,
    network_gb_per_s: f64,
) -> DataSheet {
    DataSheet {
        name,
        driver,
        bf16_tera,
        fp32_tera,
        memory_gb,
        memory_gb_per_s,
        link_gb_per_s,
        network_gb_per_s,
    }
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// No row of the table.
    #[error(
        "{name:?} is no device of the table; it has {known}; for another one, write a device file"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not the JSON of a device.
    #[error("it is no device: {reason}")]
    NotADevice {
        /// Why.
        reason: String,
    },
    /// A number that no device has.
    #[error("{key} is {value}, but it must be {expected}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it says.
        value: f64,
        /// What would be right.
        expected: &'static str,
    },
}

impl Device {
    /// The names that [`Self::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|row| row.name)
    }

    /// The device of this name in the table, whatever the case of its letters.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`].
    pub fn named(name: &str) -> Result<Self, DeviceError> {
        let row = TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name));
        row.map(DataSheet::device)
            .ok_or_else(|| DeviceError::Unknown {
                name: name.to_owned(),
                known: Self::names().collect::<Vec<_>>().join(", "),
            })
    }

    /// The device that a driver calls so, such as `NVIDIA H100 80GB HBM3`; `None` for one that is not in the table.
    pub fn of_driver(name: &str) -> Option<Self> {
        // Laptops' chips have the names of faster ones.
        if name.contains("Laptop") || name.contains("Max-Q") {
            return None;
        }
        let contains = |known: &str| {
            name.match_indices(known).any(|(at, _)| {
                let next = name[at + known.len()..].chars().next();
                let before = name[..at].chars().next_back();
                let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                // GH200 and GB200 are an H200 and a B200 beside a processor.
                !is_word(next) && (!is_word(before) || before == Some('G'))
            })
        };
        let row = TABLE.iter().find(|row| contains(row.driver));
        row.map(DataSheet::device)
    }

    /// A guess at this many cores of a server's processor, for choosing among meshes where nothing was measured: 100 GFLOP/s and
    /// 8 GB/s a core.
    pub fn processor(cores: f64, memory_bytes: f64, devices_per_node: usize) -> Self {
        let link = Link {
            bandwidth: 5e9,
            efficiency: 1.0,
            latency_s: 20e-6,
        };
        Self {
            name: "cpu".to_owned(),
            cpu: true,
            memory_bytes,
            bf16_flops: 100e9 * cores,
            fp32_flops: 60e9 * cores,
            product_efficiency: 1.0,
            short_side: None,
            attention_efficiency: [0.5, 0.5],
            memory_bandwidth: 8e9 * cores,
            memory_efficiency: 1.0,
            operation_s: 5e-6,
            link,
            network: Link {
                bandwidth: 1.25e9,
                ..link
            },
            devices_per_node,
            overlap: 0.0,
        }
    }

    /// The device that a device file describes.
    ///
    /// # Errors
    /// What is no JSON of a device, or says what no device is.
    pub fn from_json(text: &str) -> Result<Self, DeviceError> {
        let device: Self = serde_json::from_str(text).map_err(|error| DeviceError::NotADevice {
            reason: error.to_string(),
        })?;
        device.check()?;
        Ok(device)
    }

    fn check(&self) -> Result<(), DeviceError> {
        let (link, network) = (&self.link, &self.network);
        let positive = [
            ("memory_bytes", self.memory_bytes),
            ("bf16_flops", self.bf16_flops),
            ("fp32_flops", self.fp32_flops),
            ("memory_bandwidth", self.memory_bandwidth),
            ("link.bandwidth", link.bandwidth),
            ("network.bandwidth", network.bandwidth),
            ("devices_per_node", self.devices_per_node as f64),
        ];
        let parts = [
            ("product_efficiency", self.product_efficiency),
            ("attention_efficiency", self.attention_efficiency[0]),
            ("attention_efficiency", self.attention_efficiency[1]),
            ("memory_efficiency", self.memory_efficiency),
            ("link.efficiency", link.efficiency),
            ("network.efficiency", network.efficiency),
        ];
        let others = [
            ("operation_s", self.operation_s),
            ("link.latency_s", link.latency_s),
            ("network.latency_s", network.latency_s),
        ];
        let wrong = |key, value, expected| {
            Err(DeviceError::Value {
                key,
                value,
                expected,
            })
        };
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return wrong(key, value, "above 0");
            }
        }
        for (key, value) in parts {
            if !(value > 0.0 && value <= 1.0) {
                return wrong(key, value, "above 0 and at most 1");
            }
        }
        if self
            .short_side
            .is_some_and(|side| !(0.0..1e6).contains(&side))
        {
            let value = self.short_side.unwrap_or_default();
            return wrong("short_side", value, "0 or more and below a million");
        }
        for (key, value) in others {
            if !(0.0..1.0).contains(&value) {
                return wrong(key, value, "0 or more and below a second");
            }
        }
        if !(0.0..=1.0).contains(&self.overlap) {
            return wrong("overlap", self.overlap, "from 0 to 1");
        }
        Ok(())
    }

    /// What a product with these sides reaches of a product of long ones.
    pub fn part_of_short_sides(&self, sides: [f64; 3]) -> f64 {
        let short = self.short_side.unwrap_or(if self.cpu { 0.0 } else { 48.0 });
        sides.map(|side| side / (side + short)).iter().product()
    }

    /// Floating point operations per second of products of this kind, at the peak.
    pub fn peak(&self, kind: Kind) -> f64 {
        match kind {
            Kind::BFloat16 | Kind::Half => self.bf16_flops,
            _ => self.fp32_flops,
        }
    }
}

impl DataSheet {
    /// With what programs reach of it. Products: cuBLAS on H100 at 4096 and more reaches 0.65 to 0.75 of the dense peak (power,
    /// not the units, is the limit). Attention: FlashAttention-2 on H100 reaches 0.35 to 0.4 of it forward and 0.3 backward (arXiv
    /// 2407.08608, figure 5). Passes over memory reach 0.85 of the data sheet; NCCL 0.8 of NVLink and of network adapters.
    fn device(&self) -> Device {
        let (products, attention) = match self.name {
            // Turing's units know fp16 and no bf16: those products run at the rate of fp32.
            "t4" => (0.1, [0.05, 0.05]),
            // Power is the limit, and this one has 500 of 700 W. Set by hand with the table in docs/plan.md in sight.
            "h100-96-hbm2e" => (0.52, [0.27, 0.215]),
            _ => (0.7, [0.38, 0.3]),
        };
        Device {
            name: self.name.to_owned(),
            cpu: false,
            memory_bytes: self.memory_gb * 1e9,
            bf16_flops: self.bf16_tera * 1e12,
            fp32_flops: self.fp32_tera * 1e12,
            product_efficiency: products,
            short_side: None,
            attention_efficiency: attention,
            memory_bandwidth: self.memory_gb_per_s * 1e9,
            memory_efficiency: 0.85,
            operation_s: 5e-6,
            link: Link {
                bandwidth: self.link_gb_per_s * 1e9,
                efficiency: 0.8,
                latency_s: 3e-6,
            },
            network: Link {
                bandwidth: self.network_gb_per_s * 1e9,
                efficiency: 0.8,
                latency_s: 10e-6,
            },
            devices_per_node: 8,
            overlap: 0.9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_the_names_that_their_drivers_give() {
        for (name, tera) in [
            ("Tesla T4", Some(65.0)),
            ("NVIDIA A100-SXM4-80GB", Some(312.0)),
            ("NVIDIA A100-SXM4-40GB", Some(312.0)),
            ("NVIDIA A100 80GB PCIe", Some(312.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA GH200 480GB", Some(989.0)),
            ("NVIDIA B200", Some(2250.0)),
            ("NVIDIA L40S", Some(362.0)),
            ("NVIDIA L4", Some(121.0)),
            ("NVIDIA A10G", None),
            ("NVIDIA A10", Some(125.0)),
            ("NVIDIA GeForce RTX 4090", Some(165.2)),
            ("NVIDIA GeForce RTX 5090", Some(209.5)),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA L40", None),
            ("NVIDIA RTX A1000", None),
            ("", None),
        ] {
            let expected = tera.map(|tera: f64| tera * 1e12);
            let found = Device::of_driver(name).map(|device| device.bf16_flops);
            assert_eq!(found, expected, "{name}");
        }
        let memory = |name| Device::of_driver(name).map(|device| device.memory_bytes);
        assert_eq!(memory("NVIDIA A100-SXM4-40GB"), Some(40e9));
        assert_eq!(memory("NVIDIA A100-SXM4-80GB"), Some(80e9));
    }

    #[test]
    fn a_device_file_is_what_a_device_is_written_as_and_nonsense_is_refused() {
        for name in Device::names() {
            let device = Device::named(&name.to_uppercase()).unwrap();
            let text = serde_json::to_string(&device).unwrap();
            assert_eq!(Device::from_json(&text).unwrap(), device);
        }
        let unknown = Device::named("abacus").unwrap_err().to_string();
        assert!(unknown.contains("h100-pcie"), "{unknown}");
        let good = serde_json::to_value(Device::named("h100").unwrap()).unwrap();
        for (key, value) in [
            ("memory_bytes", serde_json::json!(-1.0)),
            ("bf16_flops", serde_json::json!(0.0)),
            ("product_efficiency", serde_json::json!(1.5)),
            ("overlap", serde_json::json!(2.0)),
            ("devices_per_node", serde_json::json!(0)),
            ("operation_s", serde_json::json!(-1e-6)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let error = Device::from_json(&bad.to_string()).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let mut bad = good;
        bad["flops"] = serde_json::json!(1.0);
        let error = Device::from_json(&bad.to_string()).unwrap_err().to_string();
        assert!(error.contains("unknown field `flops`"), "{error}");
        assert!(Device::from_json("[").is_err());
    }
}
