mod digest;
mod hosts;
mod manifest;
mod reference;
mod registry;
mod tree;
mod unpack;
pub use unpack::unpack_tar;
