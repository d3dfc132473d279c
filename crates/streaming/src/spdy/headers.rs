//! Header blocks of SPDY/3: names and values with their lengths, deflated with a dictionary that both sides know and one
//! state a direction for the life of the connection.

use bytes::Buf;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Inflated headers of one stream. Kubernetes' take under 200 bytes; a thousand times that packs into a small frame.
const BLOCK_BYTES: usize = 16 * 1024;

/// The peer's headers cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("not deflated with SPDY/3's dictionary")]
    Inflate(#[from] flate2::DecompressError),
    #[error("more than {BLOCK_BYTES} bytes")]
    TooLong,
    #[error("cut off")]
    Short,
}

/// Headers of one stream, names in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of `name`, the first one where there are several.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.split('\0').next())
    }

    fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = block.try_get_u32().map_err(|_| HeaderError::Short)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = Self::text(&mut block)?.to_ascii_lowercase();
            headers.push((name, Self::text(&mut block)?));
        }
        Ok(Self(headers))
    }

    fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
        let length = block.try_get_u32().map_err(|_| HeaderError::Short)? as usize;
        let bytes = block.get(..length).ok_or(HeaderError::Short)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        block.advance(length);
        Ok(text)
    }
}

/// The peer's headers, in the order they come.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(crate) fn block(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = vec![0; BLOCK_BYTES];
        let (begun_in, begun_out) = (self.0.total_in(), self.0.total_out());
        loop {
            let read = (self.0.total_in() - begun_in) as usize;
            let written = (self.0.total_out() - begun_out) as usize;
            let (input, room) = (&compressed[read..], &mut block[written..]);
            if room.is_empty() {
                return Err(HeaderError::TooLong);
            }
            let status = match self.0.decompress(input, room, FlushDecompress::Sync) {
                // Only a connection's first block asks.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY)?;
                    continue;
                }
                status => status?,
            };
            let read = (self.0.total_in() - begun_in) as usize;
            let written = (self.0.total_out() - begun_out) as usize;
            if read == compressed.len() && written < block.len() {
                return Headers::parse(&block[..written]);
            }
            // No progress is to come: the stream has an end inside, or is stuck.
            if status == Status::StreamEnd || (status == Status::BufError && written < block.len()) {
                return Err(HeaderError::Short);
            }
        }
    }
}

/// Our headers. Kubernetes has none in a reply, so this knows one block.
#[derive(Debug)]
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).expect("the state is new");
        Self(compress)
    }

    /// A block without headers.
    pub(crate) fn empty(&mut self) -> Vec<u8> {
        self.deflate(&[0; 4])
    }

    /// A block of what it is to inflate to.
    pub(crate) fn deflate(&mut self, plain: &[u8]) -> Vec<u8> {
        // Deflate grows nothing by more than a few bytes a block; the sync marker takes five.
        let mut compressed = Vec::with_capacity(plain.len() + plain.len() / 8 + 64);
        self.0.compress_vec(plain, &mut compressed, FlushCompress::Sync).expect("no error but a wrong use");
        compressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        plain
    }

    #[test]
    fn the_dictionary_is_the_known_one() {
        assert_eq!(DICTIONARY.len(), 1423);
        // Its checksum, which the first block of every SPDY/3 peer has behind zlib's two bytes.
        assert_eq!(Deflater::new().empty()[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn blocks_depend_on_those_before() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let block = deflater.deflate(&plain(&[("StreamType", "stdout"), ("port", "8080")]));
            sizes.push(block.len());
            let headers = inflater.block(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port")), (Some("stdout"), Some("8080")));
        }
        assert!(sizes[1] < sizes[0], "{sizes:?}");
        assert_eq!(inflater.block(&deflater.empty()).unwrap(), Headers::default());
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let value = "a".repeat(1024 * 1024);
        let mut inflater = Inflater::new();
        let mut deflater = Deflater::new();
        let block = deflater.deflate(&plain(&[("bomb", &value)]));
        assert!(matches!(inflater.block(&block), Err(HeaderError::TooLong)), "{} bytes", block.len());
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(matches!(Inflater::new().block(b"not zlib at all"), Err(HeaderError::Inflate(_))));
        assert!(matches!(Inflater::new().block(&[]), Err(HeaderError::Short)));
        let mut deflater = Deflater::new();
        let whole = deflater.deflate(&plain(&[("name", "value")]));
        assert!(matches!(Inflater::new().block(&whole[..whole.len() / 2]), Err(HeaderError::Short)));
    }
}
