use super::*;

#[test]
fn ends() {
    let good = End {
        reason: end::Reason::Quit.into(),
        digest: zeros(16),
        ..End::default()
    };
    crate::check::end(&good).unwrap();
    crate::check::end(&End {
        memory_digest: zeros(16),
        detail: "x".repeat(MAX_TEXT_BYTES),
        ..good.clone()
    })
    .unwrap();
    for reason in [-1, 0, 6] {
        assert!(crate::check::end(&End { reason, ..good.clone() }).is_err());
    }
    assert!(
        crate::check::end(&End {
            detail: "x".repeat(MAX_TEXT_BYTES + 1),
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        crate::check::end(&End {
            digest: Bytes::new(),
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        crate::check::end(&End {
            memory_digest: zeros(15),
            ..good
        })
        .is_err()
    );
}
