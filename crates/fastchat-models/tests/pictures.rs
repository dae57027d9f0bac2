//! Pictures that clients send, and those that no client should: the right pixels, or a plain reason.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

use std::path::Path;

use fastchat_models::vision::{Picture, PictureLimits};
use serde_json::Value;

fn read(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name)).unwrap()
}

fn reason(bytes: &[u8], limits: &PictureLimits) -> String {
    Picture::decode(bytes, limits).unwrap_err().to_string()
}

#[test]
fn every_kind_has_the_pixels_that_pillow_reads() {
    let expected: Value = serde_json::from_slice(&read("expected.json")).unwrap();
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), 13);
    for (name, expected) in expected {
        let picture = Picture::decode(&read(name), &PictureLimits::default()).unwrap();
        assert_eq!(
            [picture.width as u64, picture.height as u64],
            [0, 1].map(|i| expected["size"][i].as_u64().unwrap())
        );
        let size = Picture::size(&read(name), &PictureLimits::default()).unwrap();
        assert_eq!(size, (picture.width, picture.height), "{name} by its header");
        // Decoders of lossy formats may differ in the last bits of a transform, and in how ink becomes light.
        let most = if name == "cmyk.jpg" {
            6
        } else if name.contains("jpg") {
            3
        } else {
            0
        };
        let rgb = expected["rgb"].as_array().unwrap();
        assert_eq!(rgb.len(), picture.rgb.len(), "{name}");
        for (i, (value, expected)) in picture.rgb.iter().zip(rgb).enumerate() {
            let off = (i64::from(*value) - expected.as_i64().unwrap()).abs();
            assert!(off <= most, "{name}: byte {i} is {value}, expected {expected}");
        }
    }
}

#[test]
fn what_is_cut_off_or_damaged_is_refused() {
    for name in ["rgb.png", "rgb.jpg", "rgb.webp", "moving.gif"] {
        let whole = read(name);
        for end in [1, 8, 20, whole.len() / 2] {
            let found = Picture::decode(&whole[..end.min(whole.len())], &PictureLimits::default());
            if let Err(error) = &found {
                let error = error.to_string();
                assert!(error.contains("damaged or cut off") || error.contains("of another kind"), "{name}: {error}");
            }
            // Some decoders fill up what is missing of a picture's body; a header that is cut is always refused.
            assert!(end > 20 || found.is_err(), "{name} cut to {end} bytes");
        }
    }
    let limits = PictureLimits::default();
    assert!(reason(b"", &limits).contains("0 bytes"));
    for other in [
        &b"<svg xmlns='http://www.w3.org/2000/svg'/>"[..],
        b"this is text",
        b"\x89PNG and then text",
        b"%PDF-1.7",
        b"BM    ",
    ] {
        let reason = reason(other, &limits);
        assert!(reason.contains("PNG, JPEG, WebP or GIF") || reason.contains("damaged"), "{reason}");
    }
}

/// A PNG that says it is `width x height` and has no pixels.
fn header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = read("rgb.png");
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = !0u32;
    for &byte in &bytes[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

#[test]
fn sizes_are_refused_by_their_header() {
    let limits = PictureLimits::default();
    assert!(reason(&header(65_535, 65_535), &limits).contains("65535 x 65535: at most 8192 pixels a side"));
    assert!(reason(&header(8192, 8193), &limits).contains("8192 pixels a side"));
    let few = PictureLimits { pixels: 40, ..limits };
    assert!(reason(&read("rgb.png"), &few).contains("8 x 6: at most 40 pixels"));
    let little = PictureLimits { bytes: 100, ..limits };
    assert!(reason(&read("rgb.webp"), &little).contains("100 bytes"), "{}", reason(&read("rgb.webp"), &little));
    // What the header promises and the body does not hold.
    assert!(reason(&header(8192, 8192), &limits).contains("damaged"));
}

#[test]
fn pixels_are_taken_as_they_are() {
    let limits = PictureLimits::default();
    let grey = Picture::from_pixels(2, 1, 1, &[7, 9], &limits).unwrap();
    assert_eq!(grey.rgb, [7, 7, 7, 9, 9, 9]);
    let rgba = Picture::from_pixels(1, 1, 4, &[1, 2, 3, 0], &limits).unwrap();
    assert_eq!(rgba.rgb, [1, 2, 3]);
    for (width, height, channels, bytes) in [(2, 1, 3, 5), (0, 1, 3, 0), (9000, 1, 1, 9000), (1, 1, 2, 2)] {
        assert!(Picture::from_pixels(width, height, channels, &vec![0; bytes], &limits).is_err());
    }
    assert!(Picture::from_pixels(usize::MAX, 2, 3, &[], &limits).is_err());
}
