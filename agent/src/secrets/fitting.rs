//! Which values the runner takes.

use super::acquire::AcquireError;
use crate::vault::Secret;
use ampoule_spec::{Name, SECRET_BYTES_MAX, SECRET_BYTES_MIN, STEP_SECRET_BYTES_MAX};

/// Why a value is not one; none: it is. Blanks at its end do not count: what prints it loses them.
pub(super) fn unfit(value: &Secret) -> Option<String> {
    if value.expose().trim_ascii_end().len() < SECRET_BYTES_MIN {
        return Some(format!(
            "has fewer than {SECRET_BYTES_MIN} bytes before the blanks at its end: it cannot be masked, and is not given"
        ));
    }
    (value.len() > SECRET_BYTES_MAX).then(|| format!("has more than {SECRET_BYTES_MAX} bytes"))
}

pub(super) fn fitting(name: &Name, value: Secret) -> Result<Secret, AcquireError> {
    let Some(why) = unfit(&value) else { return Ok(value) };
    let told = format!("secret {name} {why}");
    Err(AcquireError::Unavailable { reason: told.clone(), told })
}

pub(super) fn too_many(bytes: usize) -> AcquireError {
    let told = format!(
        "the secrets of this step have {bytes} bytes together, at most {STEP_SECRET_BYTES_MAX} are given"
    );
    AcquireError::Unavailable { reason: told.clone(), told }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;

    #[test]
    fn value_fits_by_what_is_left_of_it_without_the_blanks_at_its_end() {
        let name = Name::parse("npm").unwrap();
        let fits = |value: &[u8]| fitting(&name, Secret::new(value.to_vec()));
        for short in
            [&b""[..], b"1234567", b"1234567\n", b"1234567 \r\n\t", b"        ", b"1\n\n\n\n\n\n\n\n\n"]
        {
            let error = fits(short).unwrap_err();
            assert_eq!(error.told().0, Code::SecretUnavailable);
            assert!(error.told().1.contains("fewer than 8 bytes before the blanks"), "{error:?}");
        }
        for long in [&b"12345678"[..], b"12345678\n", b"       8", &[b'x'; SECRET_BYTES_MAX]] {
            assert_eq!(fits(long).unwrap().expose(), long, "it is given as it is");
        }
        assert!(fits(&[b'x'; SECRET_BYTES_MAX + 1]).unwrap_err().told().1.contains("more than"));
    }
}
