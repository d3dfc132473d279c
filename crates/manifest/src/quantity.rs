//! Amounts of things: `500m`, `64Mi`, `1.5`, `2e3`.

use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;

/// An amount, as Kubernetes writes it (apimachinery's resource.Quantity): a decimal number with a suffix, decimal (`n`,
/// `u`, `m`, `k`, `M`, `G`, `T`, `P`, `E`), binary (`Ki` … `Ei`) or an exponent. Exact to a billionth; finer parts are
/// rounded away from zero. Compares by amount, not by spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nanos: i128,
}

/// No quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("{0:?} is no quantity: a number with a suffix such as m, k, M, G, Ki, Mi or Gi")]
    Malformed(String),
    #[error("{0:?} is larger than any quantity can be")]
    TooLarge(String),
}

impl Quantity {
    /// That many whole units.
    pub const fn units(units: i64) -> Self {
        Self { nanos: units as i128 * NANO }
    }

    /// In whole units (bytes, for memory), rounded up.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// In thousandths (of a CPU), rounded up.
    pub fn millis(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// How often `divisor` fits in, rounded up: what `resourceFieldRef` gives. The divisor of a zero is 1.
    pub fn divided_by(self, divisor: Quantity) -> i64 {
        self.scaled(if divisor.nanos == 0 { NANO } else { divisor.nanos })
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    fn scaled(self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let up = rest != 0 && (rest < 0) == (unit < 0);
        let rounded = whole + i128::from(up);
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed(text.to_owned());
        let too_large = || QuantityError::TooLarge(text.to_owned());
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(malformed());
        }
        let (multiplier, exponent) = scale(suffix).ok_or_else(malformed)?;
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let digits: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| too_large())? };
        // Nano-units are ten to the ninth; the fraction's digits were counted as whole ones.
        let shift = exponent + 9 - i32::try_from(fraction.len()).map_err(|_| malformed())?;
        let amount = digits.checked_mul(multiplier).ok_or_else(too_large)?;
        let nanos = match u32::try_from(shift) {
            Ok(up) if amount != 0 => {
                10_i128.checked_pow(up).and_then(|power| amount.checked_mul(power)).ok_or_else(too_large)?
            }
            Ok(_) => 0,
            Err(_) => match 10_i128.checked_pow(shift.unsigned_abs()) {
                Some(power) => amount / power + i128::from(amount % power != 0),
                None => i128::from(amount != 0),
            },
        };
        Ok(Self { nanos: if negative { -nanos } else { nanos } })
    }
}

/// A suffix as a factor and a power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let decimal = |exponent| Some((1, exponent));
    let binary = |power: u32| Some((1 << (10 * power), 0));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            // i32's own parser takes a sign; a hundred is beyond what fits in any case.
            decimal(exponent.parse().ok().filter(|exponent: &i32| exponent.abs() <= 100)?)
        }
    }
}

impl fmt::Display for Quantity {
    /// In the largest binary unit that divides it, else in thousandths or billionths.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos % NANO != 0 {
            return match self.nanos % (NANO / 1000) {
                0 => write!(f, "{}m", self.nanos / (NANO / 1000)),
                _ => write!(f, "{}n", self.nanos),
            };
        }
        let mut units = self.nanos / NANO;
        let mut suffix = "";
        for larger in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if units == 0 || units % 1024 != 0 {
                break;
            }
            units /= 1024;
            suffix = larger;
        }
        write!(f, "{units}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn suffixes_and_exponents() {
        assert_eq!(quantity("64Mi").value(), 64 << 20);
        assert_eq!(quantity("1.5Gi").value(), 3 << 29);
        assert_eq!(quantity("128M").value(), 128_000_000);
        assert_eq!(quantity("2e3").value(), 2000);
        assert_eq!(quantity("1E").value(), 1_000_000_000_000_000_000);
        assert_eq!(quantity("500m").millis(), 500);
        assert_eq!(quantity("0.1").millis(), 100);
        assert_eq!(quantity(".5").millis(), 500);
        assert_eq!(quantity("2.").millis(), 2000);
        assert_eq!(quantity("-1k").value(), -1000);
        assert_eq!(quantity("1000m"), quantity("1"));
    }

    #[test]
    fn parts_of_a_unit_count_as_one() {
        assert_eq!(quantity("100n").millis(), 1);
        assert_eq!(quantity("1.0000000001").value(), 2);
        assert_eq!(quantity("1500m").value(), 2);
        assert_eq!(quantity("1500m").divided_by(quantity("1m")), 1500);
        assert_eq!(quantity("100Mi").divided_by(quantity("1Gi")), 1);
        assert_eq!(quantity("100Mi").divided_by(Quantity::default()), 100 << 20);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", "1 Gi", "1gi", "1.2.3", "--1", "1e", "1e1000", "0x10", "half", "1,5", "."] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert!(matches!("9e99".parse::<Quantity>(), Err(QuantityError::TooLarge(_))));
    }

    #[test]
    fn it_is_written_as_people_would() {
        for (given, written) in
            [("65536Ki", "64Mi"), ("1500m", "1500m"), ("3", "3"), ("0", "0"), ("7n", "7n"), ("1024", "1Ki")]
        {
            assert_eq!(quantity(given).to_string(), written);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[-+]?[0-9.]{0,40}[a-zA-Z0-9-]{0,5}|\\PC*") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                prop_assert_eq!(quantity.to_string().parse::<Quantity>(), Ok(quantity));
                let _ = (quantity.value(), quantity.millis(), quantity.divided_by(quantity));
            }
        }
    }
}
