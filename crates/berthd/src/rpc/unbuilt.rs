//! Methods that berth does not have yet. kubelet asks for some of them only to find out, and falls back by the code.

/// Methods that answer UNIMPLEMENTED with their name: `Name: method(Request) -> Response;`.
///
/// For the inside of an `impl` under `#[tonic::async_trait]`. That attribute runs before this macro, so the methods
/// are spelt as it would have left them.
macro_rules! unbuilt {
    ($($name:ident: $method:ident($request:ty) -> $response:ty;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            request: tonic::Request<$request>,
        ) -> futures::future::BoxFuture<'async_trait, Result<tonic::Response<$response>, tonic::Status>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            $crate::rpc::received(request);
            let refused = tonic::Status::unimplemented(concat!(stringify!($name), " is not implemented"));
            Box::pin(std::future::ready(Err(refused)))
        }
    )*};
}
pub(crate) use unbuilt;
