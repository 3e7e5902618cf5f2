//! Ridge regression by the normal equations (Hoerl and Kennard, Technometrics 12, 1970), for a handful of inputs.

/// Weight of the ridge term against one sample: enough to keep the equations solvable when sensors stand still or
/// move alike, too little to be seen otherwise.
const RIDGE: f64 = 1e-3;

/// The intercept, and the weight of each input, that fit the targets best. Inputs are scaled to their spread first,
/// since sensors differ by many powers of ten; one that never moves gets the weight 0. Rows are of equal length.
pub fn ridge(inputs: &[Vec<f64>], targets: &[f64]) -> (f64, Vec<f64>) {
    let width = inputs.first().map_or(0, Vec::len);
    let columns: Vec<Scaled> = (0..width)
        .map(|at| Scaled::of(inputs.iter().map(|row| row.get(at).copied().unwrap_or_default()).collect()))
        .collect();
    let middle = mean(targets);
    let centred: Vec<f64> = targets.iter().map(|target| target - middle).collect();

    let mut equations: Vec<Vec<f64>> = columns
        .iter()
        .map(|row| {
            let mut equation: Vec<f64> = columns.iter().map(|column| dot(&row.values, &column.values)).collect();
            equation.push(dot(&row.values, &centred));
            equation
        })
        .collect();
    for (at, equation) in equations.iter_mut().enumerate() {
        if let Some(diagonal) = equation.get_mut(at) {
            *diagonal += RIDGE * targets.len() as f64;
        }
    }
    let weights: Vec<f64> =
        solve(equations).iter().zip(&columns).map(|(weight, column)| finite(weight / column.spread)).collect();
    let intercept = weights.iter().zip(&columns).fold(middle, |left, (weight, column)| left - weight * column.mean);
    (finite(intercept), weights)
}

/// A column with mean 0 and spread 1.
struct Scaled {
    mean: f64,
    spread: f64,
    values: Vec<f64>,
}

impl Scaled {
    fn of(values: Vec<f64>) -> Self {
        let mean = mean(&values);
        let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
        let spread = (dot(&centred, &centred) / values.len() as f64).sqrt();
        // below the rounding of the mean, there is no movement but noise
        let still = !spread.is_finite() || spread <= mean.abs() * 1e-12;
        let spread = if still || spread == 0.0 { 1.0 } else { spread };
        let values = centred.iter().map(|value| if still { 0.0 } else { value / spread }).collect();
        Self { mean, spread, values }
    }
}

/// Solves a symmetric positive definite system, given as rows of coefficients with the right side last, by
/// elimination. Needs no pivoting: the ridge term keeps every pivot away from 0.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let size = rows.len();
    for at in 0..size {
        let (done, rest) = rows.split_at_mut(at + 1);
        let Some(pivot) = done.last() else { break };
        for row in rest {
            let factor = cell(row, at) / cell(pivot, at);
            row.iter_mut().zip(pivot).for_each(|(to, from)| *to -= factor * from);
        }
    }
    let mut solution = vec![0.0; size];
    for (at, row) in rows.iter().enumerate().rev() {
        let known: f64 = row.iter().zip(&solution).skip(at + 1).map(|(factor, value)| factor * value).sum();
        if let Some(value) = solution.get_mut(at) {
            *value = (cell(row, size) - known) / cell(row, at);
        }
    }
    solution
}

fn cell(row: &[f64], at: usize) -> f64 {
    row.get(at).copied().unwrap_or_default()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().map(|value| value / values.len() as f64).sum()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn a_known_line_is_found() {
        let inputs: Vec<Vec<f64>> = (0..72).map(|n| vec![f64::from(n % 9), f64::from(n % 7) * 1e6]).collect();
        let targets: Vec<f64> = inputs.iter().map(|row| 5.0 - 2.0 * row[0] + 3e-6 * row[1]).collect();
        let (intercept, weights) = ridge(&inputs, &targets);
        assert!((intercept - 5.0).abs() < 0.05, "{intercept}");
        assert!((weights[0] + 2.0).abs() < 0.01 && (weights[1] - 3e-6).abs() < 1e-8, "{weights:?}");
    }

    #[test]
    fn columns_that_stand_still_or_move_alike_do_no_harm() {
        let inputs: Vec<Vec<f64>> = (0..20).map(|n| vec![7.1, f64::from(n), f64::from(n)]).collect();
        let targets: Vec<f64> = (0..20).map(|n| f64::from(n) * 4.0).collect();
        let (intercept, weights) = ridge(&inputs, &targets);
        assert_eq!(weights[0], 0.0);
        assert!((weights[1] - 2.0).abs() < 0.01 && (weights[2] - 2.0).abs() < 0.01, "{weights:?}");
        assert!(intercept.abs() < 0.1, "{intercept}");
        assert_eq!(ridge(&[vec![], vec![]], &[1.0, 3.0]), (2.0, vec![]));
        let (intercept, weights) = ridge(&[vec![1e300], vec![-1e300], vec![1e300]], &[1e300, 0.0, 1.0]);
        assert!(intercept.is_finite() && weights[0].is_finite());
    }
}
