"""Video and audio of the avatar for one WebRTC connection: codec preferences, tracks, and feedback."""

from __future__ import annotations

from dataclasses import dataclass

from aiortc import RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver

from telepresence.streaming.audio.audio_hub import AudioHub
from telepresence.streaming.audio.tracks import AudioPacketTrack
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.network_simulation import LinkProfile, SimulatedLink
from telepresence.streaming.rtc.offer import first_video_codec
from telepresence.streaming.video.audience import Audience
from telepresence.streaming.video.bandwidth import PROBE_GAP_S, PROBE_PACKETS
from telepresence.streaming.video.encoder import Codec
from telepresence.streaming.video.tracks import RawFrameTrack


@dataclass(frozen=True)
class PeerStream:
    """Attaches the avatar's video and audio to peer connections: of viewers, of calls, and of a WHIP server.

    ``shared``: peers get packets that are encoded once for all, which needs the hooks into aiortc; else each peer gets
    an encoder of its own.  ``link``: a simulated network between the daemon and each peer; None: none.
    """

    audience: Audience
    shared: bool
    audio: AudioHub
    link: LinkProfile | None = None

    def add_video(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Add a video section in ``direction`` (``sendonly``, ``sendrecv``) to ``pc``, the cheapest codec first."""
        transceiver = pc.addTransceiver("video", direction=direction)
        first = "video/H264" if self.shared else "video/VP8"  # VP8 costs less to encode for each viewer
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType != first))
        return transceiver

    def attach(self, sender: RTCRtpSender, answer: str) -> None:
        """Send video by ``sender`` in the codec of the SDP ``answer``; to be called before the connection is made."""
        if not self.shared:
            sender.replaceTrack(RawFrameTrack(self.audience.hub))
            return
        viewer = self.audience.add_viewer(Codec(first_video_codec(answer)))
        sender.replaceTrack(viewer.track)
        aiortc_hooks.set_feedback_handler(sender, viewer)
        aiortc_hooks.send_playout_delay(sender)
        transport = sender.transport.transport
        if self.link is not None:
            aiortc_hooks.simulate_link(transport, SimulatedLink(self.link))
        aiortc_hooks.pace_first_packets(transport, PROBE_PACKETS, PROBE_GAP_S)

    def add_audio(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Add an Opus section in ``direction`` to ``pc``; if it sends, it sends the audio of the call."""
        transceiver = pc.addTransceiver("audio", direction=direction)
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        if direction != "recvonly":
            transceiver.sender.replaceTrack(AudioPacketTrack(self.audio))
        return transceiver
