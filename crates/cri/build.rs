//! Compiles every file under `proto/` with protox, so that no system `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut files = Vec::new();
    for folder in ["runtime/v1", "berth/v1"] {
        let folder = root.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        files.extend(protos(&folder)?);
    }

    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let builder = tonic_prost_build::configure()
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        .build_client(env::var_os("CARGO_FEATURE_CLIENT").is_some())
        // A client is given its channel; how to dial a socket is its owner's business.
        .build_transport(false)
        // Ordered maps: what is made from a message (a spec, a record, a log line) is the same every time.
        .btree_map(".")
        // These hold credentials; lib.rs writes their Debug by hand.
        .skip_debug([".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"]);
    builder.compile_fds(descriptors)?;
    Ok(())
}

/// The `.proto` files directly in a folder, in order of their names.
fn protos(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
