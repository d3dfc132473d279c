//! nf_tables expressions: the steps of a rule. Names and numbers are those of linux/netfilter/nf_tables.h.

use super::wire::Attributes;

/// A 4-byte register (`NFT_REG32_00` + n); longer values take the ones that follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    const BASE: u32 = 8;

    fn number(self) -> u32 {
        Self::BASE + self.0
    }
}

/// Packet properties (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    InputName = 6,
    OutputName = 7,
    Family = 15,
    TransportProtocol = 16,
}

/// Where a payload offset counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Header {
    Network = 1,
    Transport = 2,
}

/// How values compare (`enum nft_cmp_ops`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compare {
    Equal = 0,
    NotEqual = 1,
}

const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const CT_DIRECTION_ORIGINAL: u8 = 0;
const CT_STATUS_DESTINATION_NAT: u32 = 1 << 5;
const FIB_RESULT_ADDRESS_TYPE: u32 = 3;
const FIB_FLAG_DESTINATION: u32 = 1 << 1;
const RTN_LOCAL: u32 = 2;
const NAT_DESTINATION: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const IFNAMSIZ: usize = 16;

/// A rule under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    expressions: Attributes,
}

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn into_attributes(self) -> Attributes {
        self.expressions
    }

    fn expression(mut self, name: &str, data: Attributes) -> Self {
        const LIST_ELEMENT: u16 = 1;
        let expression = Attributes::new().string(1, name).nested(2, data);
        self.expressions = self.expressions.nested(LIST_ELEMENT, expression);
        self
    }

    pub(crate) fn load_meta(self, key: Meta, into: Register) -> Self {
        self.expression("meta", Attributes::new().u32(1, into.number()).u32(2, key as u32))
    }

    pub(crate) fn load_payload(self, header: Header, offset: u32, length: u32, into: Register) -> Self {
        let data =
            Attributes::new().u32(1, into.number()).u32(2, header as u32).u32(3, offset).u32(4, length);
        self.expression("payload", data)
    }

    /// The port that the connection's first packet was sent to, before any translation.
    pub(crate) fn load_original_port(self, into: Register) -> Self {
        let data =
            Attributes::new().u32(1, into.number()).u32(2, CT_PROTO_DST).bytes(3, &[CT_DIRECTION_ORIGINAL]);
        self.expression("ct", data)
    }

    pub(crate) fn compare(self, register: Register, how: Compare, value: &[u8]) -> Self {
        let data = Attributes::new()
            .u32(1, register.number())
            .u32(2, how as u32)
            .nested(3, Attributes::new().bytes(1, value));
        self.expression("cmp", data)
    }

    /// Goes on only when the register's bits under `mask` are `value`.
    pub(crate) fn compare_masked(self, register: Register, how: Compare, mask: &[u8], value: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("masks are addresses");
        let data = Attributes::new()
            .u32(1, register.number())
            .u32(2, register.number())
            .u32(3, length)
            .nested(4, Attributes::new().bytes(1, mask))
            .nested(5, Attributes::new().bytes(1, &vec![0; mask.len()]));
        self.expression("bitwise", data).compare(register, how, value)
    }

    /// Goes on only for packets of that family.
    pub(crate) fn family(self, family: u8) -> Self {
        self.load_meta(Meta::Family, Register(0)).compare(Register(0), Compare::Equal, &[family])
    }

    /// Goes on only when the interface is, or is not, this one.
    pub(crate) fn interface(self, which: Meta, how: Compare, name: &str) -> Self {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(IFNAMSIZ, 0);
        self.load_meta(which, Register(0)).compare(Register(0), how, &padded)
    }

    /// Goes on only when the destination is one of the host's own addresses.
    pub(crate) fn destination_is_local(self) -> Self {
        let data = Attributes::new()
            .u32(1, Register(0).number())
            .u32(2, FIB_RESULT_ADDRESS_TYPE)
            .u32(3, FIB_FLAG_DESTINATION);
        self.expression("fib", data).compare(Register(0), Compare::Equal, &RTN_LOCAL.to_ne_bytes())
    }

    /// Goes on only for connections whose destination was translated.
    pub(crate) fn destination_was_translated(self) -> Self {
        let data = Attributes::new().u32(1, Register(0).number()).u32(2, CT_STATUS);
        let bit = CT_STATUS_DESTINATION_NAT.to_ne_bytes();
        self.expression("ct", data).compare_masked(Register(0), Compare::NotEqual, &bit, &[0; 4])
    }

    /// Goes on only when the set has the key that begins at `key`; a map's value is put at `value`.
    pub(crate) fn look_up(self, set: &str, key: Register, value: Option<Register>) -> Self {
        let mut data = Attributes::new().string(1, set).u32(2, key.number());
        if let Some(value) = value {
            data = data.u32(3, value.number());
        }
        self.expression("lookup", data)
    }

    pub(crate) fn translate_destination(self, family: u8, address: Register, port: Register) -> Self {
        let data = Attributes::new()
            .u32(1, NAT_DESTINATION)
            .u32(2, u32::from(family))
            .u32(3, address.number())
            .u32(5, port.number());
        self.expression("nat", data)
    }

    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::new())
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(libc::NF_DROP)
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT)
    }

    fn verdict(self, code: libc::c_int) -> Self {
        let verdict = Attributes::new().u32(1, code.cast_unsigned());
        let data = Attributes::new().u32(1, VERDICT_REGISTER).nested(2, Attributes::new().nested(2, verdict));
        self.expression("immediate", data)
    }
}
