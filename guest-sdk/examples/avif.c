// Makes AVIF of pictures: a POSTed PNG or JPEG comes back as AVIF, encoded by libaom.
//
//   POST /?quality=60&speed=8     both optional: 1 to 100 (60), 5 to 9 (8), which is how hard it does not try
//   GET /                         a page that does it with a picture of the visitor's
//
// 415 is what is no picture, 413 one with too many pixels, 400 a parameter out of bounds. What is transparent becomes white.
//
// LDLIBS: -laom -ljpeg -lpng16 -lz -lm

// A request writes to less than 64 bytes for each pixel, so that these fit into max_request_memory as it is by default.
enum { MOST_PIXELS = 1000 * 1000 };

#include "picture.h"

#include <aom/aom_encoder.h>
#include <aom/aomcx.h>

static const char PAGE[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\"><title>AVIF of your picture</title>\n"
	"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
	"<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\n"
	"img{max-width:100%;display:block;margin-top:1rem}</style></head><body>\n"
	"<h1>AVIF of your picture</h1>\n"
	"<p><input id=\"file\" type=\"file\" accept=\"image/png,image/jpeg\">\n"
	"<label>quality <input id=\"quality\" type=\"range\" min=\"1\" max=\"100\" value=\"60\"></label></p>\n"
	"<p id=\"said\">It is decoded and encoded in a virtual machine of its own.</p><img id=\"picture\" alt=\"\">\n"
	"<script>\n"
	"const by = id => document.getElementById(id);\n"
	"async function convert() {\n"
	"  const file = by('file').files[0];\n"
	"  if (!file) return;\n"
	"  const answer = await fetch('?quality=' + by('quality').value, {method: 'POST', body: file});\n"
	"  if (!answer.ok) { by('said').textContent = await answer.text(); return; }\n"
	"  const picture = await answer.blob();\n"
	"  by('said').textContent = file.size + ' bytes were, ' + picture.size + ' bytes are';\n"
	"  by('picture').src = URL.createObjectURL(picture);\n"
	"}\n"
	"by('file').onchange = by('quality').onchange = convert;\n"
	"</script></body></html>\n";

// ---------------------------------------------------------------- the encoder

// The colours of BT.601 at full range: Y for each pixel, U and V for each four.
static void convert(const struct picture *picture, aom_image_t *image)
{
	const unsigned width = picture->width, height = picture->height;

	for (unsigned y = 0; y < height; y += 2) {
		for (unsigned x = 0; x < width; x += 2) {
			float sum[3] = {0}, count = 0;

			for (unsigned i = 0; i < 4; i++) {
				const unsigned px = x + (i & 1), py = y + (i >> 1);
				const uint8_t *at = picture->rgba + ((size_t)py * width + px) * 4;
				float rgb[3];

				if (px >= width || py >= height)
					continue;
				for (int c = 0; c < 3; c++) {
					rgb[c] = 255 + (at[c] - 255) * (at[3] / 255.0f);
					sum[c] += rgb[c];
				}
				count++;
				image->planes[0][(size_t)py * image->stride[0] + px] =
					(uint8_t)(0.299f * rgb[0] + 0.587f * rgb[1] + 0.114f * rgb[2] + 0.5f);
			}
			for (int c = 0; c < 3; c++)
				sum[c] /= count;
			image->planes[1][(size_t)(y / 2) * image->stride[1] + x / 2] =
				(uint8_t)(-0.168736f * sum[0] - 0.331264f * sum[1] + 0.5f * sum[2] + 128);
			image->planes[2][(size_t)(y / 2) * image->stride[2] + x / 2] =
				(uint8_t)(0.5f * sum[0] - 0.418688f * sum[1] - 0.081312f * sum[2] + 128);
		}
	}
}

// One frame of AV1, without the delimiter before it.
static const uint8_t *encode(const struct picture *picture, unsigned quality, unsigned speed, size_t *len)
{
	static aom_codec_ctx_t codec;
	aom_codec_enc_cfg_t config;
	aom_codec_iter_t iterator = NULL;
	const aom_codec_cx_pkt_t *packet;
	aom_image_t image;

	if (aom_codec_enc_config_default(aom_codec_av1_cx(), &config, AOM_USAGE_ALL_INTRA) != AOM_CODEC_OK ||
	    !aom_img_alloc(&image, AOM_IMG_FMT_I420, picture->width, picture->height, 32))
		return NULL;
	image.range = AOM_CR_FULL_RANGE;
	convert(picture, &image);
	config.g_w = picture->width;
	config.g_h = picture->height;
	config.g_threads = 1;
	config.g_limit = 1;
	config.g_lag_in_frames = 0;
	config.rc_end_usage = AOM_Q;
	if (aom_codec_enc_init(&codec, aom_codec_av1_cx(), &config, 0) != AOM_CODEC_OK ||
	    aom_codec_control(&codec, AOME_SET_CPUUSED, (int)speed) != AOM_CODEC_OK ||
	    aom_codec_control(&codec, AOME_SET_CQ_LEVEL, (100 - quality) * 63 / 100) != AOM_CODEC_OK ||
	    aom_codec_control(&codec, AV1E_SET_COLOR_RANGE, AOM_CR_FULL_RANGE) != AOM_CODEC_OK ||
	    aom_codec_encode(&codec, &image, 0, 1, 0) != AOM_CODEC_OK) {
		vlogf("avif: %s", aom_codec_error_detail(&codec) ? aom_codec_error_detail(&codec) : aom_codec_error(&codec));
		return NULL;
	}
	while ((packet = aom_codec_get_cx_data(&codec, &iterator)))
		if (packet->kind == AOM_CODEC_CX_FRAME_PKT && packet->data.frame.sz > 4) {
			const uint8_t *data = packet->data.frame.buf;
			const size_t delimiter = data[0] == 0x12 && data[1] == 0 ? 2 : 0;

			*len = packet->data.frame.sz - delimiter;
			return data + delimiter;
		}
	return NULL;
}

// ---------------------------------------------------------------- the file (ISO/IEC 14496-12, 23008-12 and the AVIF specification)

static uint8_t *file;
static size_t file_len;

static void put(const void *data, size_t len)
{
	memcpy(file + file_len, data, len);
	file_len += len;
}

static void number(uint32_t value, int bytes)
{
	while (bytes-- > 0)
		file[file_len++] = (uint8_t)(value >> 8 * bytes);
}

// A box begins; it ends where end() is told what this has given.
static size_t box(const char *type)
{
	const size_t at = file_len;

	number(0, 4);
	put(type, 4);
	return at;
}

static size_t full_box(const char *type, uint32_t version_and_flags)
{
	const size_t at = box(type);

	number(version_and_flags, 4);
	return at;
}

static void end(size_t at)
{
	const size_t len = file_len;

	file_len = at;
	number((uint32_t)(len - at), 4);
	file_len = len;
}

// One item, with its size, its depth, the decoder's configuration and its colours. `frame` begins with the sequence header.
static void write_avif(const struct picture *picture, const uint8_t *frame, size_t frame_len)
{
	size_t outer, meta, inner, properties, offset_at;

	file = malloc(frame_len + 1000);
	if (!file)
		refuse(500, "no memory\n");
	outer = box("ftyp");
	put("avif\0\0\0\0avifmif1miaf", 20);
	end(outer);
	meta = full_box("meta", 0);
	inner = full_box("hdlr", 0);
	put("\0\0\0\0pict\0\0\0\0\0\0\0\0\0\0\0\0", 21);
	end(inner);
	inner = full_box("pitm", 0);
	number(1, 2);
	end(inner);
	inner = full_box("iloc", 0);
	number(0x4400, 2); // offsets and lengths of four bytes
	number(1, 2);
	number(1, 2); // the item,
	number(0, 2); // in this file,
	number(1, 2); // in one piece
	offset_at = file_len;
	number(0, 4);
	number((uint32_t)frame_len, 4);
	end(inner);
	inner = full_box("iinf", 0);
	number(1, 2);
	outer = full_box("infe", 2 << 24);
	number(1, 2);
	number(0, 2);
	put("av01", 5);
	end(outer);
	end(inner);
	properties = box("iprp");
	outer = box("ipco");
	inner = full_box("ispe", 0);
	number(picture->width, 4);
	number(picture->height, 4);
	end(inner);
	inner = full_box("pixi", 0);
	put("\3\10\10\10", 4);
	end(inner);
	inner = box("av1C");
	// Profile and level stand in the sequence header, behind its two bytes: profile, two flags of a still picture, level.
	number(0x81, 1);
	number((uint32_t)((frame[2] & 0xe0) | (frame[2] & 7) << 2 | frame[3] >> 6), 1);
	number(0x0c, 1); // 8 bits, 4:2:0
	number(0, 1);
	end(inner);
	inner = box("colr");
	put("nclx\0\1\0\15\0\6\200", 11); // BT.709's primaries, sRGB, BT.601, full range
	end(inner);
	end(outer);
	outer = full_box("ipma", 0);
	number(1, 4);
	number(1, 2);
	put("\4\1\2\203\4", 5); // the third is essential
	end(outer);
	end(properties);
	end(meta);
	outer = box("mdat");
	inner = file_len;
	put(frame, frame_len);
	end(outer);
	meta = file_len;
	file_len = offset_at;
	number((uint32_t)inner, 4);
	file_len = meta;
}

// ---------------------------------------------------------------- the answer

static void on_post(const char *url, const char *arg, const char *type, const uint8_t *data, size_t len)
{
	const unsigned quality = parameter(url, "quality", 1, 100, 60), speed = parameter(url, "speed", 5, 9, 8);
	struct picture picture;
	const uint8_t *frame;
	size_t frame_len;

	(void)arg, (void)type;
	if (!((len > 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8) && decode_png(data, len, &picture)) ||
	      (len > 3 && !memcmp(data, "\xff\xd8\xff", 3) && decode_jpeg(data, len, &picture))))
		refuse(415, "no PNG or JPEG, or a broken one\n");
	frame = encode(&picture, quality, speed, &frame_len);
	if (!frame)
		refuse(500, "this picture can't be encoded\n");
	write_avif(&picture, frame, frame_len);
	http_appendf(RESP, "X-Picture: %u x %u, %zu bytes, now %zu", picture.width, picture.height, len, file_len);
	backend_response(200, "image/avif", 10, file, file_len);
}

static void on_get(const char *url, const char *arg)
{
	(void)url, (void)arg;
	backend_response(200, "text/html; charset=utf-8", 24, PAGE, sizeof PAGE - 1);
}

int main(void)
{
	set_backend_get(on_get);
	set_backend_post(on_post);
	wait_for_requests();
}
