//! Cosines and sines of the rotary embedding for every position of a sequence.

use std::f32::consts::TAU;

use tandem_tensor::{Device, Tensor};

use crate::config::{RopeConfig, RopeScaling};

/// fp32 `[seq, rotary_dim / 2]` tables, computed once and shared by all layers.
#[derive(Debug)]
pub struct RopeTable {
    /// Cosines, times the scaling's attention factor.
    pub cos: Tensor,
    /// Sines, times the scaling's attention factor.
    pub sin: Tensor,
}

impl RopeTable {
    /// Tables for positions `0..seq` of heads of which `rotary_dim` numbers are rotated.
    pub fn new(rope: &RopeConfig, rotary_dim: usize, seq: usize, device: Device) -> Self {
        let frequencies = inverse_frequencies(rope, rotary_dim, seq);
        let factor = match rope.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        };
        let angles = (0..seq).flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f32 * frequency)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.cos() * factor, angle.sin() * factor))
            .unzip();
        let shape = [seq as i64, (rotary_dim / 2) as i64];
        let table = |values: &[f32]| Tensor::from_slice(values).view(shape).to_device(device);
        Self {
            cos: table(&cos),
            sin: table(&sin),
        }
    }
}

/// Radians per position of each pair of dimensions, in fp32 as transformers computes them.
/// LongRoPE takes the factors that are for rows of `seq` tokens.
fn inverse_frequencies(rope: &RopeConfig, rotary_dim: usize, seq: usize) -> Vec<f32> {
    let base: Vec<f32> = (0..rotary_dim / 2)
        .map(|i| 1.0 / (rope.theta as f32).powf((2 * i) as f32 / rotary_dim as f32))
        .collect();
    match &rope.scaling {
        RopeScaling::Default => base,
        &RopeScaling::Linear { factor } => base.iter().map(|f| f / factor as f32).collect(),
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position,
        } => {
            let (factor, original) = (factor as f32, original_max_position as f32);
            let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
            base.iter()
                .map(|&frequency| {
                    let wavelength = TAU / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect()
        }
        &RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position,
            truncate,
            ..
        } => {
            // The (fractional) pair of dimensions that turns `rotations` times over the original context.
            let dimension = |rotations: f64| {
                rotary_dim as f64
                    * (original_max_position / (rotations * std::f64::consts::TAU)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let low = low.max(0.0) as f32;
            let mut high = high.min(rotary_dim as f64 - 1.0) as f32;
            if low == high {
                high += 0.001;
            }
            base.iter()
                .enumerate()
                .map(|(i, &frequency)| {
                    let interpolated = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor as f32 * interpolated + frequency * (1.0 - interpolated)
                })
                .collect()
        }
        RopeScaling::LongRope {
            short,
            long,
            original_max_position,
            ..
        } => {
            let is_long = seq as f64 > *original_max_position;
            let factors = if is_long { long } else { short };
            let pairs = base.iter().zip(factors);
            pairs.map(|(base, factor)| base / *factor as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling) -> Vec<f32> {
        inverse_frequencies(
            &RopeConfig {
                theta: 10_000.0,
                scaling,
            },
            16,
            2,
        )
    }

    #[test]
    fn scalings_keep_fast_and_stretch_slow_dimensions() {
        let base = frequencies(RopeScaling::Default);
        assert_eq!(base[0], 1.0);
        let linear = frequencies(RopeScaling::Linear { factor: 4.0 });
        assert!(
            base.iter()
                .zip(&linear)
                .all(|(b, l)| (b / l - 4.0).abs() < 1e-5)
        );
        let llama3 = frequencies(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 64.0,
        });
        assert_eq!(llama3[0], base[0]);
        assert!((base[7] / llama3[7] - 8.0).abs() < 1e-4);
        let yarn = frequencies(RopeScaling::Yarn {
            factor: 8.0,
            attention_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position: 2048.0,
            truncate: true,
        });
        assert_eq!(yarn[0], base[0]);
        assert!((base[7] / yarn[7] - 8.0).abs() < 1e-4);
        // Monotone: the ramp never makes a slower dimension faster.
        assert!(yarn.windows(2).all(|w| w[1] < w[0]));
    }
}
