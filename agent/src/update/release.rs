//! What describes a release, and the proof that it comes from who may release.
//!
//! The description is JSON, and beside it lies its minisign signature (prehashed, minisign's default). Since version, target,
//! size and SHA-256 of each program stand in what is signed, none of them can be exchanged between releases or targets:
//!
//! ```json
//! {
//!   "product": "plimsoll-agent",
//!   "version": "0.2.0",
//!   "files": {
//!     "x86_64-linux-gnu": {"url": "plimsoll-agent-0.2.0-x86_64-linux-gnu", "size_bytes": 11403264, "sha256": "9f86d081…"}
//!   }
//! }
//! ```
//!
//! Readers ignore unknown keys; writers never change a key's meaning.

use std::{collections::BTreeMap, fmt, io, io::Read};

use minisign_verify::{PublicKey, Signature};
use semver::Version;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Longest description in bytes.
pub const MAX_DESCRIPTION_BYTES: u64 = 64 * 1024;
/// Longest signature in bytes.
pub const MAX_SIGNATURE_BYTES: u64 = 4 * 1024;
/// Largest program in bytes.
pub const MAX_PROGRAM_BYTES: u64 = 256 * 1024 * 1024;
/// What the description ends with to become the signature's name.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

/// What this program is called in a description.
const PRODUCT: &str = "plimsoll-agent";
/// How much of a file is read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// What programs for this machine are listed under: architecture, system and C library, such as `x86_64-linux-gnu`.
#[must_use]
pub fn target() -> String {
    use std::env::consts::{ARCH, OS};
    let library = if cfg!(target_env = "musl") {
        "-musl"
    } else if cfg!(target_env = "gnu") {
        "-gnu"
    } else {
        ""
    };
    let calls = if cfg!(target_abi = "eabihf") { "eabihf" } else { "" };
    format!("{ARCH}-{OS}{library}{calls}")
}

/// Why there is no key to verify with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// None is built in, none configured.
    #[error("no key is built in: expected the minisign key that releases are signed with")]
    None,
    /// What is given is none.
    #[error("expected a minisign key, the second line of its .pub file")]
    Invalid,
}

/// The key that releases are signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseKey(PublicKey);

impl ReleaseKey {
    /// The configured key, else the one named at build time by the variable `PLIMSOLL_UPDATE_KEY`.
    pub fn configured_or_built_in(configured: Option<&str>) -> Result<Self, KeyError> {
        let text = configured.or(option_env!("PLIMSOLL_UPDATE_KEY")).ok_or(KeyError::None)?;
        Ok(Self(PublicKey::from_base64(text.trim()).map_err(|_| KeyError::Invalid)?))
    }
}

/// Why a release is not to be trusted or of no use.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The signature is none, or is not of this description by the key's owner.
    #[error("its signature does not vouch for it: {problem}")]
    Signature {
        /// What is wrong.
        problem: String,
    },
    /// It is signed, and not a description all the same.
    #[error("it does not describe a release")]
    Description(#[source] serde_json::Error),
    /// It describes something else.
    #[error("it describes `{product}`, expected `{PRODUCT}`")]
    OtherProduct {
        /// What it describes.
        product: String,
    },
    /// It describes another version than it stands for.
    #[error("it describes version {found}, expected {expected}")]
    OtherVersion {
        /// What it describes.
        found: Version,
        /// What it stands for.
        expected: Version,
    },
    /// It has no program for machines like this.
    #[error("it has no program for {target}")]
    NoProgram {
        /// This machine's target.
        target: String,
    },
    /// The program described is too large.
    #[error("its program has {size_bytes} bytes, expected at most {MAX_PROGRAM_BYTES}")]
    TooLarge {
        /// The size described.
        size_bytes: u64,
    },
    /// The program is not the one described.
    #[error("it is not the program that the description names: {what} differs")]
    OtherProgram {
        /// What differs.
        what: &'static str,
    },
}

/// A release whose description is signed with the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its version.
    pub version: Version,
    files: BTreeMap<String, Program>,
}

/// A program of a release.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Program {
    /// Where it is: an address, or relative to the description's.
    pub url: String,
    /// How large it is.
    pub size_bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// A description as it stands in JSON.
#[derive(Deserialize)]
struct Description {
    product: String,
    version: Version,
    files: BTreeMap<String, Program>,
}

impl Release {
    /// Reads a description, but only once `signature` has proved it to be signed with `key`.
    pub fn verified(description: &[u8], signature: &[u8], key: &ReleaseKey) -> Result<Self, ReleaseError> {
        verify(description, signature, key).map_err(|problem| ReleaseError::Signature { problem })?;
        let Description { product, version, files } =
            serde_json::from_slice(description).map_err(ReleaseError::Description)?;
        if product != PRODUCT {
            return Err(ReleaseError::OtherProduct { product });
        }
        Ok(Self { version, files })
    }

    /// The program for `target`, of a size that is accepted.
    pub fn program(&self, target: &str) -> Result<&Program, ReleaseError> {
        let program = self.files.get(target).ok_or_else(|| ReleaseError::NoProgram { target: target.to_owned() })?;
        match program.size_bytes {
            ..=MAX_PROGRAM_BYTES => Ok(program),
            size_bytes => Err(ReleaseError::TooLarge { size_bytes }),
        }
    }
}

fn verify(description: &[u8], signature: &[u8], key: &ReleaseKey) -> Result<(), String> {
    let signature = str::from_utf8(signature).map_err(|error| error.to_string())?;
    let signature = Signature::decode(signature).map_err(|error| error.to_string())?;
    key.0.verify(description, &signature, false).map_err(|error| error.to_string())
}

impl Program {
    /// Reads a program to its end and returns whether it is this one. Fails when it cannot be read.
    pub fn check(&self, mut program: impl Read) -> io::Result<Result<(), ReleaseError>> {
        let mut digest = ProgramDigest::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = program.read(&mut chunk)?;
            if read == 0 {
                return Ok(digest.check(self));
            }
            digest.update(&chunk[..read]);
            // Something endless in its place must not keep the agent from starting.
            if digest.size_bytes > self.size_bytes {
                return Ok(Err(ReleaseError::OtherProgram { what: "the size" }));
            }
        }
    }
}

/// Size and hash of a program that comes bit by bit.
#[derive(Default)]
pub struct ProgramDigest {
    size_bytes: u64,
    hash: Sha256,
}

impl fmt::Debug for ProgramDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramDigest").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl ProgramDigest {
    /// Takes the next part.
    pub fn update(&mut self, part: &[u8]) {
        self.size_bytes += part.len() as u64;
        self.hash.update(part);
    }

    /// How much has come.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fails unless what has come is the program.
    pub fn check(self, program: &Program) -> Result<(), ReleaseError> {
        if self.size_bytes != program.size_bytes {
            return Err(ReleaseError::OtherProgram { what: "the size" });
        }
        let found: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == program.sha256 { Ok(()) } else { Err(ReleaseError::OtherProgram { what: "the SHA-256" }) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use minisign::KeyPair;
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"{"product": "plimsoll-agent", "version": "1.2.3", "later": 1, "files": {"a-b": {"url": "x", "size_bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}}"#;

    struct Signer(KeyPair);

    impl Signer {
        fn new() -> Self {
            Self(KeyPair::generate_unencrypted_keypair().unwrap())
        }

        fn key(&self) -> ReleaseKey {
            ReleaseKey::configured_or_built_in(Some(&self.0.pk.to_base64())).unwrap()
        }

        fn sign(&self, text: &str) -> Vec<u8> {
            minisign::sign(None, &self.0.sk, Cursor::new(text), None, None).unwrap().into_string().into_bytes()
        }

        fn release(&self, text: &str) -> Result<Release, ReleaseError> {
            Release::verified(text.as_bytes(), &self.sign(text), &self.key())
        }
    }

    #[test]
    fn a_signed_description_is_read() {
        let release = Signer::new().release(TEXT).unwrap();
        assert_eq!(release.version, Version::new(1, 2, 3));
        let program = release.program("a-b").unwrap();
        assert_eq!((&*program.url, program.size_bytes), ("x", 3));
        assert!(matches!(release.program("b-a"), Err(ReleaseError::NoProgram { .. })));
    }

    #[test]
    fn no_other_signature_vouches_for_it() {
        let signer = Signer::new();
        let (key, signature) = (signer.key(), signer.sign(TEXT));
        let refused = |text: &[u8], signature: &[u8]| {
            matches!(Release::verified(text, signature, &key), Err(ReleaseError::Signature { .. }))
        };
        assert!(refused(TEXT.replace("1.2.3", "1.2.4").as_bytes(), &signature));
        assert!(refused(TEXT.as_bytes(), &Signer::new().sign(TEXT)));
        assert!(refused(TEXT.as_bytes(), b""));
        assert!(refused(TEXT.as_bytes(), TEXT.as_bytes()));
        // The comment that minisign signs along with it.
        let commented = String::from_utf8(signature).unwrap().replace("trusted comment: ", "trusted comment: x");
        assert!(refused(TEXT.as_bytes(), commented.as_bytes()));
    }

    #[test]
    fn what_is_signed_must_also_be_of_use() {
        let signer = Signer::new();
        let of = |from: &str, to: &str| signer.release(&TEXT.replace(from, to));
        assert!(matches!(of("plimsoll-agent", "plimsoll"), Err(ReleaseError::OtherProduct { .. })));
        for version in ["1.2", "v1.2.3", "../1.2.3", "1.2.3/..", ""] {
            assert!(matches!(of("1.2.3", version), Err(ReleaseError::Description(_))), "{version}");
        }
        let large = of("\"size_bytes\": 3", "\"size_bytes\": 268435457").unwrap();
        assert!(matches!(large.program("a-b"), Err(ReleaseError::TooLarge { .. })));
    }

    #[test]
    fn a_program_is_known_by_size_and_hash() {
        let release = Signer::new().release(TEXT).unwrap();
        let program = release.program("a-b").unwrap();
        let what = |text: &[u8]| match program.check(text).unwrap() {
            Ok(()) => "",
            Err(ReleaseError::OtherProgram { what }) => what,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(what(b"abc"), "");
        assert_eq!(what(b"abd"), "the SHA-256");
        assert_eq!(what(b"ab"), "the size");
        assert_eq!(what(b"abcd"), "the size");
        assert!(matches!(program.check(io::repeat(0)), Ok(Err(_))), "an endless file is not read to its end");
    }

    #[test]
    fn this_machine_has_a_target() {
        let target = target();
        assert!(target.starts_with(std::env::consts::ARCH) && target.contains(std::env::consts::OS), "{target}");
    }

    proptest! {
        #[test]
        fn no_signature_makes_the_reader_panic(
            text in ".*", lines in proptest::collection::vec("(trusted comment: )?[A-Za-z0-9+/= ]{0,110}", 0..6),
        ) {
            let key = ReleaseKey::configured_or_built_in(Some("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"));
            let signature = lines.join("\n");
            prop_assert!(Release::verified(text.as_bytes(), signature.as_bytes(), &key.unwrap()).is_err());
        }

        #[test]
        fn no_key_makes_the_reader_panic(text in "[A-Za-z0-9+/=]{0,80}|.*") {
            let _ = ReleaseKey::configured_or_built_in(Some(&text));
        }
    }
}
