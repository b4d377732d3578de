// Makes WebP of pictures: a POSTed PNG, JPEG or WebP comes back as WebP, smaller if that is asked for.
//
//   POST /?quality=60&width=320     both optional: 1 to 100 (75), and the width in pixels, which only shrinks
//   GET /                           a page that does it with a picture of the visitor's
//
// Whatever the decoders make of a hostile file happens in a fork that is put back afterwards. 415 is what is no picture, 413 one with
// too many pixels, 400 a parameter out of bounds.
//
// LDLIBS: -lwebp -ljpeg -lpng16 -lz -lm

// A request writes to about eight bytes for each pixel.
enum { MOST_PIXELS = 5 * 1000 * 1000 };

#include "picture.h"

#include <webp/decode.h>
#include <webp/encode.h>

_Static_assert(MOST_SIDE == WEBP_MAX_DIMENSION, "the longest side");

static const char PAGE[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\"><title>WebP of your picture</title>\n"
	"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
	"<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\n"
	"img{max-width:100%;display:block;margin-top:1rem}</style></head><body>\n"
	"<h1>WebP of your picture</h1>\n"
	"<p><input id=\"file\" type=\"file\" accept=\"image/png,image/jpeg,image/webp\">\n"
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

static bool decode_webp(const uint8_t *data, size_t len, struct picture *picture)
{
	int width, height;

	if (!WebPGetInfo(data, len, &width, &height))
		return false;
	make_room(picture, (unsigned)width, (unsigned)height);
	return WebPDecodeRGBAInto(data, len, picture->rgba, (size_t)width * (size_t)height * 4, width * 4);
}

static bool decode(const uint8_t *data, size_t len, struct picture *picture)
{
	if (len > 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8))
		return decode_png(data, len, picture);
	if (len > 3 && !memcmp(data, "\xff\xd8\xff", 3))
		return decode_jpeg(data, len, picture);
	if (len > 12 && !memcmp(data, "RIFF", 4) && !memcmp(data + 8, "WEBP", 4))
		return decode_webp(data, len, picture);
	return false;
}

// ---------------------------------------------------------------- the answer

static void on_post(const char *url, const char *arg, const char *type, const uint8_t *data, size_t len)
{
	const unsigned quality = parameter(url, "quality", 1, 100, 75), width = parameter(url, "width", 1, MOST_SIDE, 0);
	struct picture picture;
	WebPPicture image;
	WebPConfig config;
	WebPMemoryWriter file;

	(void)arg, (void)type;
	if (!decode(data, len, &picture))
		refuse(415, "no PNG, JPEG or WebP, or a broken one\n");
	if (!WebPConfigPreset(&config, WEBP_PRESET_DEFAULT, (float)quality) || !WebPPictureInit(&image))
		refuse(500, "another version of libwebp\n");
	config.method = 2; // fast
	config.low_memory = 1;
	image.width = (int)picture.width;
	image.height = (int)picture.height;
	WebPMemoryWriterInit(&file);
	image.writer = WebPMemoryWrite;
	image.custom_ptr = &file;
	if (!WebPPictureImportRGBA(&image, picture.rgba, (int)picture.width * 4) ||
	    (width && width < picture.width && !WebPPictureRescale(&image, (int)width, 0)) || !WebPEncode(&config, &image)) {
		vlogf("webp: error %d of a picture of %u x %u", image.error_code, picture.width, picture.height);
		refuse(500, "this picture can't be encoded\n");
	}
	http_appendf(RESP, "X-Picture: %u x %u, %zu bytes, now %d x %d, %zu bytes", picture.width, picture.height, len,
		     image.width, image.height, file.size);
	backend_response(200, "image/webp", 10, file.mem, file.size);
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
