// Speaks: /?text=Hello&voice=en-gb is a sound (WAV), made by espeak-ng; / is a page to try it.
//
// The data of espeak-ng is read from files, so the tenant has to be allowed to: allowed_paths = "/usr/lib/x86_64-linux-gnu/espeak-ng-data".
//
// LDLIBS: -lespeak-ng -lsonic -lm -Wl,--wrap=fifo_init

#include <kvm_api.h>

#include <espeak-ng/speak_lib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char DATA[] = "/usr/lib/x86_64-linux-gnu";

// Some seconds of speech. It may only grow to the array's size; what is longer is cut.
enum { MOST_SAMPLES = 22050 * 60, MOST_TEXT = 1000 };
static struct {
	char head[44];
	int16_t samples[MOST_SAMPLES];
} wav;
static size_t samples;
static int rate;

static const char PAGE[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Speech</title>\n"
	"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
	"<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}\n"
	"textarea{width:100%;font:inherit}audio{width:100%;margin-top:1rem}</style></head><body>\n"
	"<h1>A virtual machine that speaks</h1>\n"
	"<textarea id=\"text\" rows=\"4\" maxlength=\"1000\">Each sentence is spoken in a machine of its own.</textarea>\n"
	"<p><select id=\"voice\"><option>en<option>en-gb-scotland<option>de<option>fr<option>es<option>it<option>sv</select>\n"
	"<button id=\"speak\">Speak</button></p><audio id=\"audio\" controls></audio>\n"
	"<script>\n"
	"const by = id => document.getElementById(id);\n"
	"by('speak').onclick = () => {\n"
	"  by('audio').src = '?' + new URLSearchParams({voice: by('voice').value, text: by('text').value});\n"
	"  by('audio').play();\n"
	"};\n"
	"</script></body></html>\n";

// libespeak-ng is built for libpcaudio, of which Debian has no static one. Nobody hears this machine: there is no device, and
// nothing of it is called, since the sound goes to on_samples().
void *create_audio_device_object(const char *device, const char *name, const char *what);
int audio_object_open(void *object, int format, uint32_t rate, uint8_t channels);
void audio_object_close(void *object);
void audio_object_destroy(void *object);
int audio_object_write(void *object, const void *data, size_t len);
int audio_object_drain(void *object);
int audio_object_flush(void *object);
const char *audio_object_strerror(void *object, int error);

void *create_audio_device_object(const char *device, const char *name, const char *what)
{
	(void)device, (void)name, (void)what;
	return NULL;
}
int audio_object_open(void *object, int format, uint32_t hertz, uint8_t channels)
{
	(void)object, (void)format, (void)hertz, (void)channels;
	return -1;
}
void audio_object_close(void *object) { (void)object; }
void audio_object_destroy(void *object) { (void)object; }
int audio_object_write(void *object, const void *data, size_t len)
{
	(void)object, (void)data, (void)len;
	return -1;
}
int audio_object_drain(void *object) { return object != NULL; }
int audio_object_flush(void *object) { return object != NULL; }
const char *audio_object_strerror(void *object, int error)
{
	(void)object, (void)error;
	return "no sound here";
}

// What would start the library's thread for speech in the background, of which there is none here: see -Wl,--wrap above.
void __wrap_fifo_init(void);
void __wrap_fifo_init(void) {}

// Called with each piece of sound. 1 would end it.
static int on_samples(short *more, int count, espeak_EVENT *events)
{
	const size_t room = MOST_SAMPLES - samples;
	const size_t n = count < 0 ? 0 : (size_t)count < room ? (size_t)count : room;

	(void)events;
	if (more)
		memcpy(wav.samples + samples, more, n * 2);
	samples += more ? n : 0;
	return samples == MOST_SAMPLES;
}

static void put(size_t at, uint32_t value, size_t bytes)
{
	memcpy(wav.head + at, &value, bytes); // x86 is little-endian, as RIFF is
}

static void write_head(void)
{
	const uint32_t bytes = (uint32_t)(samples * 2);

	memcpy(wav.head, "RIFF....WAVEfmt ", 16);
	put(4, 36 + bytes, 4);
	put(16, 16, 4);
	put(20, 1, 2); // PCM
	put(22, 1, 2); // one channel
	put(24, (uint32_t)rate, 4);
	put(28, (uint32_t)rate * 2, 4);
	put(32, 2, 2);
	put(34, 16, 2);
	memcpy(wav.head + 36, "data", 4);
	put(40, bytes, 4);
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

// The URL's parameter of this name, decoded; false if there is none, or it is too long.
static bool parameter(const char *url, const char *name, char *out, size_t room)
{
	const size_t len = strlen(name);
	size_t n = 0;
	const char *at = strchr(url, '?');

	for (; at && (strncmp(at + 1, name, len) || at[1 + len] != '='); at = strchr(at + 1, '&'))
		;
	if (!at)
		return false;
	for (at += len + 2; *at && *at != '&'; at++) {
		if (n + 1 == room)
			return false;
		if (*at == '%' && digit(at[1]) >= 0 && digit(at[2]) >= 0) {
			out[n++] = (char)(digit(at[1]) << 4 | digit(at[2]));
			at += 2;
		} else {
			out[n++] = *at == '+' ? ' ' : *at;
		}
	}
	out[n] = '\0';
	return true;
}

static void on_get(const char *url, const char *arg)
{
	char text[MOST_TEXT + 1], voice[40];

	(void)arg;
	if (!strchr(url, '?'))
		backend_response(200, "text/html; charset=utf-8", 24, PAGE, sizeof PAGE - 1);
	if (!parameter(url, "text", text, sizeof text))
		backend_response_str(400, "text/plain", "a text of 1,000 bytes at most: /?text=\n");
	if (parameter(url, "voice", voice, sizeof voice) && espeak_SetVoiceByName(voice) != EE_OK)
		backend_response_str(400, "text/plain", "there is no such voice\n");
	if (espeak_Synth(text, strlen(text) + 1, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, NULL, NULL) != EE_OK)
		backend_response_str(500, "text/plain", "it can't be spoken\n");
	write_head();
	set_cacheable(true, 3600);
	backend_response(200, "audio/wav", 9, &wav, sizeof wav.head + samples * 2);
}

int main(void)
{
	rate = espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, DATA, espeakINITIALIZE_DONT_EXIT);
	if (rate <= 0 || espeak_SetVoiceByName("en") != EE_OK) {
		fprintf(stderr, "no data of espeak-ng in %s: is it allowed?\n", DATA);
		return 1;
	}
	espeak_SetSynthCallback(on_samples);
	// A first sentence loads what every one needs.
	espeak_Synth("one", 4, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, NULL, NULL);
	samples = 0;
	set_backend_get(on_get);
	wait_for_requests();
}
