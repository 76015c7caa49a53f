// Output of a rendered frame: compositing over the background and conversion to bytes (RGBA, RGB, YCbCr); and gradual
// change of the displayed weights to newer ones.
//
// `rgba` (height * width, 4) is premultiplied, the background is (height * width, 3); both are in [0, 1]. YCbCr is
// BT.601 in limited range, which encoders and browsers assume for untagged video. Sides are even, and a chroma sample
// is the mean of 2 x 2 pixels. NaN becomes 0.
#include "layout.cuh"
#include "vec.cuh"

DEVICE byte to_byte(float x) { return byte(int(x + 0.5f)); }

DEVICE vec3 pixel_over(const float* rgba, const float* background, int i) {
    const vec4 front = load4(rgba + 4 * i);
    const vec3 behind = load3(background + 3 * i);
    const float transmittance = 1.0f - clampf(front.w, 0.0f, 1.0f);
    return vec3{clampf(clampf(front.x, 0.0f, 1.0f) + transmittance * behind.x, 0.0f, 1.0f),
                clampf(clampf(front.y, 0.0f, 1.0f) + transmittance * behind.y, 0.0f, 1.0f),
                clampf(clampf(front.z, 0.0f, 1.0f) + transmittance * behind.z, 0.0f, 1.0f)};
}

// Composites the frame over the coloured head mesh: `underlay` (triangles, 4), premultiplied, by the triangle of each
// pixel.
KERNEL(128) composite_underlay(const int* triangle, const float* underlay, float* rgba, int pixels) {
    EACH(i, pixels) {
        const int seen = triangle[i];
        const float transmittance = 1.0f - clampf(rgba[4 * i + 3], 0.0f, 1.0f);
        if (seen < 0 || !(transmittance > 0.0f)) continue;
        UNROLL for (int c = 0; c < 4; ++c) rgba[4 * i + c] += transmittance * underlay[4 * seen + c];
    }
}

// Writes (height * width, 4) bytes, premultiplied, without background.
KERNEL(128) write_rgba(const float* rgba, byte* out, int pixels) {
    EACH(i, pixels) {
        const vec4 pixel = load4(rgba + 4 * i);
        out[4 * i] = to_byte(255.0f * clampf(pixel.x, 0.0f, 1.0f));
        out[4 * i + 1] = to_byte(255.0f * clampf(pixel.y, 0.0f, 1.0f));
        out[4 * i + 2] = to_byte(255.0f * clampf(pixel.z, 0.0f, 1.0f));
        out[4 * i + 3] = to_byte(255.0f * clampf(pixel.w, 0.0f, 1.0f));
    }
}

// Writes (height * width, 3) bytes over the background.
KERNEL(128) write_rgb(const float* rgba, const float* background, byte* out, int pixels) {
    EACH(i, pixels) {
        const vec3 pixel = pixel_over(rgba, background, i);
        out[3 * i] = to_byte(255.0f * pixel.x);
        out[3 * i + 1] = to_byte(255.0f * pixel.y);
        out[3 * i + 2] = to_byte(255.0f * pixel.z);
    }
}

// Writes Y (height, width), then Cb and Cr (height / 2, width / 2) as two planes (I420), or interleaved if `paired`
// (NV12).
KERNEL(128) write_yuv(const float* rgba, const float* background, byte* out, int width, int height,
                      int paired) {
    const int across = width / 2, quarter = across * (height / 2);
    byte* chroma = out + width * height;
    EACH(i, quarter) {
        const int corner = i / across * 2 * width + i % across * 2;
        vec3 sum = {0.0f, 0.0f, 0.0f};
        for (int q = 0; q < 4; ++q) {
            const int j = corner + (q & 1) + (q >> 1) * width;
            const vec3 pixel = pixel_over(rgba, background, j);
            out[j] = to_byte(16.0f + 65.481f * pixel.x + 128.553f * pixel.y + 24.966f * pixel.z);
            sum = sum + pixel;
        }
        const vec3 mean = 0.25f * sum;
        const byte blue = to_byte(128.0f - 37.797f * mean.x - 74.203f * mean.y + 112.0f * mean.z);
        const byte red = to_byte(128.0f + 112.0f * mean.x - 93.786f * mean.y - 18.214f * mean.z);
        chroma[paired ? 2 * i : i] = blue;
        chroma[paired ? 2 * i + 1 : quarter + i] = red;
    }
}

// shown += share * (target - shown). With the shares 1/n, 1/(n - 1), ... 1 the fade is linear and ends exactly at the
// target.
KERNEL(256) cross_fade(float* shown, const float* target, float share, int count) {
    EACH(i, count) { shown[i] = share < 1.0f ? shown[i] + share * (target[i] - shown[i]) : target[i]; }
}
