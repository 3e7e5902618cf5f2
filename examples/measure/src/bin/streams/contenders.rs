//! The two transports, each as a pair of connected endpoints in this process.
//!
//! Quinn gets libp2p's own TLS configuration (peer key in the certificate, both sides checked), so that what
//! differs is what lies between the stream and the socket, not the cipher or the handshake.

use std::{
    net::Ipv4Addr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::{AsyncRead, AsyncWrite, StreamExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identity::Keypair, multiaddr::Protocol,
    swarm::SwarmEvent,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::{runtime::Handle, task::JoinSet};

pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/measure/1");

/// A bidirectional stream, whoever carries it.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for S {}

pub type Serve<S> = fn(S) -> BoxFuture<'static, ()>;

/// Quinn's two halves as one stream, as libp2p-quic holds them.
pub struct QuinnStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl AsyncRead for QuinnStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for QuinnStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut self.send), cx)
    }
}

/// Two quinn endpoints, connected; streams are accepted and served in the background.
pub struct Quinn {
    connection: quinn::Connection,
    _client: quinn::Endpoint,
    _tasks: JoinSet<Result<()>>,
}

impl Quinn {
    /// The serving side runs on `at`. `like_libp2p` copies what `libp2p_quic::Config` sets in the transport; otherwise quinn's defaults hold.
    pub async fn connect(
        at: &Handle,
        like_libp2p: bool,
        serve: Serve<QuinnStream>,
    ) -> Result<Self> {
        let (server_key, client_key) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let mut transport = quinn::TransportConfig::default();
        if like_libp2p {
            transport
                .max_concurrent_uni_streams(0u32.into())
                .datagram_receive_buffer_size(None)
                .keep_alive_interval(Some(Duration::from_secs(5)))
                .max_idle_timeout(Some(Duration::from_secs(10).try_into()?))
                .allow_spin(false)
                .stream_receive_window(10_000_000u32.into())
                .receive_window(15_000_000u32.into());
        }
        let transport = Arc::new(transport);
        let tls = QuicServerConfig::try_from(libp2p_tls::make_server_config(&server_key)?)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport.clone());
        let server = at
            .spawn(async { quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()) })
            .await??;

        let expected = server_key.public().to_peer_id();
        let tls = QuicClientConfig::try_from(libp2p_tls::make_client_config(
            &client_key,
            Some(expected),
        )?)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(transport);
        let client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;

        let connecting = client.connect_with(config, server.local_addr()?, "l")?;
        let mut tasks = JoinSet::new();
        let accept = async move {
            let connection = server
                .accept()
                .await
                .context("the endpoint closed")?
                .await?;
            let mut streams = JoinSet::new();
            loop {
                let (send, recv) = connection.accept_bi().await?;
                streams.spawn(serve(QuinnStream { send, recv }));
            }
        };
        tasks.spawn_on(accept, at);
        Ok(Self {
            connection: connecting.await?,
            _client: client,
            _tasks: tasks,
        })
    }

    pub async fn open(&mut self) -> Result<QuinnStream> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok(QuinnStream { send, recv })
    }
}

/// A swarm that speaks raw streams over QUIC and nothing else.
pub fn swarm(
    key: Keypair,
    configure: impl FnOnce(libp2p::quic::Config) -> libp2p::quic::Config,
) -> Result<Swarm<libp2p_stream::Behaviour>> {
    Ok(SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_quic_config(configure)
        .with_behaviour(|_| libp2p_stream::Behaviour::new())?
        .build())
}

/// Listens on a port of the loopback interface, and says which.
pub async fn listen(swarm: &mut Swarm<libp2p_stream::Behaviour>, port: u16) -> Result<Multiaddr> {
    let address = Multiaddr::from(Ipv4Addr::LOCALHOST)
        .with(Protocol::Udp(port))
        .with(Protocol::QuicV1);
    swarm.listen_on(address)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => return Ok(address),
            SwarmEvent::ListenerClosed { reason, .. } => bail!("cannot listen: {reason:?}"),
            _ => {}
        }
    }
}

/// Dials, and returns once connected.
pub async fn dial(
    swarm: &mut Swarm<libp2p_stream::Behaviour>,
    address: Multiaddr,
) -> Result<PeerId> {
    swarm.dial(address)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
            SwarmEvent::OutgoingConnectionError { error, .. } => bail!("cannot dial: {error}"),
            _ => {}
        }
    }
}

/// Two libp2p swarms, connected; streams are accepted and served in the background.
pub struct Libp2p {
    control: libp2p_stream::Control,
    server: PeerId,
    _tasks: JoinSet<()>,
}

impl Libp2p {
    pub async fn connect(at: &Handle, serve: Serve<libp2p::Stream>) -> Result<Self> {
        let mut client = swarm(Keypair::generate_ed25519(), |config| config)?;
        let control = client.behaviour().new_control();
        let serving = at.spawn(async {
            let mut server = swarm(Keypair::generate_ed25519(), |config| config)?;
            let address = listen(&mut server, 0).await?;
            anyhow::Ok((server, address))
        });
        let (mut server, address) = serving.await??;
        let mut incoming = server.behaviour().new_control().accept(PROTOCOL)?;

        let mut tasks = JoinSet::new();
        let drive = async move {
            loop {
                server.select_next_some().await;
            }
        };
        tasks.spawn_on(drive, at);
        let accept = async move {
            let mut streams = JoinSet::new();
            while let Some((_, stream)) = incoming.next().await {
                streams.spawn(serve(stream));
            }
        };
        tasks.spawn_on(accept, at);
        let server = dial(&mut client, address).await?;
        tasks.spawn(async move {
            loop {
                client.select_next_some().await;
            }
        });
        Ok(Self {
            control,
            server,
            _tasks: tasks,
        })
    }

    pub async fn open(&mut self) -> Result<libp2p::Stream> {
        Ok(self.control.open_stream(self.server, PROTOCOL).await?)
    }
}
