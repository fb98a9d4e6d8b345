//! The part of XLA's foreign function interface that is used here, as `xla/ffi/api/c_api.h` of jaxlib declares it.
//!
//! [`layout`] says how the compiler laid these structs out; a test compares it with the header of the jaxlib that is installed.
//! XLA adds fields only at the end of structs, so what follows the last field here, in a newer version, is never looked at.

#![allow(non_snake_case, non_upper_case_globals)] // fields and constants have their names in C

use std::ffi::{c_char, c_int, c_void};

/// Declare structs, each with its name in C, and constants; and [`layout`] of all of them.
macro_rules! declare {
    (
        $($(#[$of_struct:meta])* struct $name:ident is $c_name:ident {
            $($(#[$of_field:meta])* $field:ident: $type:ty,)*
        })*
        constants { $($(#[$of_constant:meta])* $constant:ident = $value:expr,)* }
    ) => {
        $($(#[$of_struct])*
        #[derive(Debug)]
        #[repr(C)]
        #[allow(clippy::struct_field_names)] // they are C's
        pub(super) struct $name {
            $($(#[$of_field])* pub(super) $field: $type,)*
        })*

        $($(#[$of_constant])* pub(super) const $constant: c_int = $value;)*

        /// Expressions of C and what they are here: the place and the size of every field, and every constant.
        pub fn layout() -> Vec<(String, usize)> {
            let mut layout = Vec::new();
            $($(
                let (name, field) = (stringify!($c_name), stringify!($field).trim_start_matches("r#"));
                layout.push((format!("offsetof({name}, {field})"), std::mem::offset_of!($name, $field)));
                layout.push((format!("sizeof((({name}*)0)->{field})"), size_of::<$type>()));
            )*)*
            $(layout.push((stringify!($constant).to_owned(), $constant as usize));)*
            layout
        }
    };
}

declare! {
    /// What precedes an extension of a struct.
    struct ExtensionBase is XLA_FFI_Extension_Base {
        struct_size: usize,
        r#type: c_int,
        next: *mut ExtensionBase,
    }

    /// A version of the interface.
    struct ApiVersion is XLA_FFI_Api_Version {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        major_version: c_int,
        minor_version: c_int,
    }

    /// What XLA wants to know of a handler: an output.
    struct Metadata is XLA_FFI_Metadata {
        struct_size: usize,
        api_version: ApiVersion,
        traits: u32,
    }

    /// The extension of a call that asks for [`Metadata`], and for nothing else.
    struct MetadataExtension is XLA_FFI_Metadata_Extension {
        extension_base: ExtensionBase,
        metadata: *mut Metadata,
    }

    /// The arguments of `XLA_FFI_Error_Create`, which copies the message.
    struct ErrorCreateArgs is XLA_FFI_Error_Create_Args {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        message: *const c_char,
        errc: c_int,
    }

    /// XLA's functions.
    struct Api is XLA_FFI_Api {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        api_version: ApiVersion,
        internal_api: *const c_void,
        XLA_FFI_Error_Create: unsafe extern "C" fn(*mut ErrorCreateArgs) -> *mut Error,
    }

    /// An argument or a result: numbers in C order.
    struct Buffer is XLA_FFI_Buffer {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        dtype: c_int,
        data: *mut c_void,
        rank: i64,
        dims: *mut i64,
    }

    /// The arguments of a call.
    struct Args is XLA_FFI_Args {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        size: i64,
        types: *mut c_int,
        args: *mut *mut c_void,
    }

    /// The results of a call.
    struct Rets is XLA_FFI_Rets {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        size: i64,
        types: *mut c_int,
        rets: *mut *mut c_void,
    }

    /// A call of a handler. What follows is not used.
    struct CallFrame is XLA_FFI_CallFrame {
        struct_size: usize,
        extension_start: *mut ExtensionBase,
        api: *const Api,
        ctx: *mut c_void,
        stage: c_int,
        args: Args,
        rets: Rets,
    }

    constants {
        /// The version that these declarations are of.
        XLA_FFI_API_MAJOR = 0,
        XLA_FFI_Extension_Metadata = 1,
        XLA_FFI_ExecutionStage_EXECUTE = 3,
        XLA_FFI_ArgType_BUFFER = 1,
        XLA_FFI_RetType_BUFFER = 1,
        XLA_FFI_Error_Code_INVALID_ARGUMENT = 3,
        XLA_FFI_Error_Code_RESOURCE_EXHAUSTED = 8,
        XLA_FFI_Error_Code_INTERNAL = 13,
        XLA_FFI_DataType_PRED = 1,
        XLA_FFI_DataType_S8 = 2,
        XLA_FFI_DataType_S16 = 3,
        XLA_FFI_DataType_S32 = 4,
        XLA_FFI_DataType_S64 = 5,
        XLA_FFI_DataType_U8 = 6,
        XLA_FFI_DataType_U16 = 7,
        XLA_FFI_DataType_U32 = 8,
        XLA_FFI_DataType_U64 = 9,
        XLA_FFI_DataType_F16 = 10,
        XLA_FFI_DataType_F32 = 11,
        XLA_FFI_DataType_F64 = 12,
        XLA_FFI_DataType_BF16 = 16,
    }
}

/// The oldest minor version that has all of this. A jaxlib takes handlers of its own version and of older ones.
pub(super) const API_MINOR: c_int = 1;

/// An error of XLA's, which it owns.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Error {
    private: [u8; 0],
}
