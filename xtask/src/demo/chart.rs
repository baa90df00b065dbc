//! Loss curves as text.

/// Columns and rows of the plotting area.
const WIDTH: usize = 64;
const HEIGHT: usize = 14;

/// The marks of the first, second, third curve, and of a place where several meet.
const MARKS: [char; 3] = ['•', '∘', '×'];
const SEVERAL: char = '●';

/// Draws curves of `(step, loss)` over common axes.
pub fn draw(curves: &[(&str, Vec<(u64, f64)>)]) -> String {
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let (first, last) = points().fold((u64::MAX, 0), |(first, last), (step, _)| {
        (first.min(*step), last.max(*step))
    });
    let (low, high) = points().fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)),
    );
    if low > high {
        return String::new();
    }

    let mut cells = vec![vec![' '; WIDTH]; HEIGHT];
    for (mark, (_, curve)) in MARKS.iter().zip(curves) {
        // A curve may have several points in one cell: it meets another one, not itself, so it is collected first.
        let mut own: Vec<(usize, usize)> = curve
            .iter()
            .map(|(step, loss)| {
                let across = fraction((step - first) as f64, (last - first) as f64);
                let down = fraction(high - loss, high - low);
                (
                    (down * (HEIGHT - 1) as f64).round() as usize,
                    (across * (WIDTH - 1) as f64).round() as usize,
                )
            })
            .collect();
        own.sort_unstable();
        own.dedup();
        for (row, column) in own {
            let cell = &mut cells[row][column];
            *cell = if *cell == ' ' { *mark } else { SEVERAL };
        }
    }

    let mut text = String::new();
    for (row, line) in cells.iter().enumerate() {
        let label = match row {
            0 => format!("{high:.2}"),
            _ if row == HEIGHT - 1 => format!("{low:.2}"),
            _ => String::new(),
        };
        let line: String = line.iter().collect();
        text += &format!("{label:>7} │{}\n", line.trim_end());
    }
    text += &format!("{:>7} └{}\n", "loss", "─".repeat(WIDTH));
    let (first, last) = (first.to_string(), last.to_string());
    text += &format!("{:>8} {first}{last:>1$}\n", "step", WIDTH - first.len());
    let legend: Vec<_> = MARKS
        .iter()
        .zip(curves)
        .map(|(mark, (name, _))| format!("{mark} {name}"))
        .collect();
    text + &format!(
        "{:>9}{}  {SEVERAL} where they meet\n",
        "",
        legend.join("  ")
    )
}

/// `part / whole`; zero of nothing, where all points lie in one line.
fn fraction(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_start_and_end_in_the_corners() {
        let falling: Vec<_> = (1..=80)
            .map(|step| (step, 8.0 - step as f64 / 40.0))
            .collect();
        let mut other = falling.clone();
        other[79].1 = 7.0;
        let text = draw(&[("fsdp", falling), ("deepspeed", other)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("   7.97 │●"), "{text}");
        assert!(lines[HEIGHT - 1].starts_with("   6.00 │"), "{text}");
        assert!(lines[HEIGHT - 1].ends_with('•'), "{text}");
        assert!(lines[HEIGHT + 1].ends_with("80"), "{text}");
        assert!(
            text.ends_with("• fsdp  ∘ deepspeed  ● where they meet\n"),
            "{text}"
        );
    }

    #[test]
    fn one_point_and_no_point_do_no_harm() {
        assert!(draw(&[("only", vec![(1, 2.0)])]).contains("2.00"));
        assert_eq!(draw(&[]), "");
    }
}
