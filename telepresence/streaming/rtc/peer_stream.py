"""How the avatar reaches one peer: which codec is asked for, and what its sender pulls from."""

from __future__ import annotations

from dataclasses import dataclass

from aiortc import RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver

from telepresence.streaming.audio.audio_hub import SoundHub
from telepresence.streaming.audio.tracks import SoundTrack
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.network_simulation import Link, LinkPlan
from telepresence.streaming.rtc.offer import first_video_codec
from telepresence.streaming.video.audience import Audience
from telepresence.streaming.video.bandwidth import PROBE_GAP_S, PROBE_PACKETS
from telepresence.streaming.video.encoder import Codec
from telepresence.streaming.video.tracks import PictureTrack


@dataclass(frozen=True)
class Feed:
    """The stream of one daemon, for every peer that takes it: viewers, calls, a server that it is published to.

    ``shared``: peers get packets that are encoded once for all, instead of an encoder of their own; all else that is
    done for them needs that, too.  ``link`` is put between the daemon and each of them.
    """

    audience: Audience
    shared: bool
    sound: SoundHub
    link: LinkPlan | None = None

    def add(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Give ``pc`` a video section in ``direction`` (``sendonly``, ``sendrecv``), the cheapest codec first."""
        transceiver = pc.addTransceiver("video", direction=direction)
        first = "video/H264" if self.shared else "video/VP8"  # VP8 is the cheaper one to encode for each viewer
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType != first))
        return transceiver

    def attach(self, sender: RTCRtpSender, answer: str) -> None:
        """Let ``sender`` send what the SDP ``answer`` settled on; call it before the connection is made."""
        if not self.shared:
            sender.replaceTrack(PictureTrack(self.audience.hub))
            return
        viewer = self.audience.admit(Codec(first_video_codec(answer)))
        sender.replaceTrack(viewer.track)
        aiortc_hooks.on_feedback(sender, viewer)
        aiortc_hooks.show_at_once(sender)
        transport = sender.transport.transport
        if self.link is not None:
            aiortc_hooks.send_through(transport, Link(self.link))
        aiortc_hooks.space_out(transport, PROBE_PACKETS, PROBE_GAP_S)

    def add_sound(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Give ``pc`` an Opus section in ``direction``; one that sends plays what everybody hears."""
        transceiver = pc.addTransceiver("audio", direction=direction)
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        if direction != "recvonly":
            transceiver.sender.replaceTrack(SoundTrack(self.sound))
        return transceiver
