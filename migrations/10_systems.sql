SELECT set_config('search_path', current_setting('mpp.objects_path'), true);
SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
